"""Watches the head of the cluster: which machines it knows, and whether it answers at all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from ray.exceptions import RayError

from rarefy.errors import TemporaryError
from rarefy.generate.fit import Machine

REFRESH_S = 3.0  # between two looks at the cluster's machines
OWNER_DIED = "its owner has died"  # what Ray's message says about actors of a driver that is lost to the cluster
SILENT_S = 10.0  # after which nothing is asked of the head that may block
HEAD_S = 30.0  # without an answer from the head; after 60 s Ray ends this process


class HeadWatch:
    """Asks for the machines in a thread of its own, because Ray's calls block while the head does not answer."""

    def __init__(self, find: Callable[[], list[Machine]], tell: Callable[[Sequence[Machine]], None]) -> None:
        self._find, self._tell = find, tell
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, name="head-watch", daemon=True).start()

    def stop(self) -> None:
        """Ask no more."""
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.is_set():
            with suppress(RayError, OSError):  # the head's silence is noticed by the one who waits for the answer
                self._tell(self._find())
            self._stopped.wait(REFRESH_S)


def check_own_machine(error: BaseException) -> None:
    """Raise TemporaryError if an actor died because Ray's server on this machine did: Ray then takes no more actors."""
    if isinstance(error, RayError) and OWNER_DIED in str(error):
        text = "Ray's server on the driver's machine has died; finished shards are kept"
        raise TemporaryError(f"{text}, run the same command again") from error


def check_head(silent_s: float) -> None:
    """Raise TemporaryError if the head has been silent for too long."""
    if silent_s > HEAD_S:
        text = f"the head of the Ray cluster has not answered for {silent_s:.0f} s; finished shards are kept"
        raise TemporaryError(f"{text}, run the same command again when the cluster is back")
