"""Local output that is written completely or not at all: a new folder or file that gets its name at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rarefy.errors import OutputError, bad
from rarefy.scratch import scratch_folder, sweep

HIDDEN = ".rarefy-tmp-"  # what a killed process left is removed by the next one that writes there


def check_free(out: str, field: str = "out") -> None:
    """Raise OutputError if there is something at ``out``; an empty folder may be. field: what the message calls it."""
    if "://" in out:
        raise OutputError(bad(field, out, "a local folder"))
    path = Path(out)
    try:
        used = path.is_symlink() or (any(path.iterdir()) if path.is_dir() else path.exists())
    except OSError as error:
        raise OutputError(f"{field}: {out!r} cannot be read ({error.strerror})") from None
    if used:
        raise OutputError(bad(field, out, "free: something is there already; choose another folder"))


@contextmanager
def new_output(out: str, field: str = "out") -> Iterator[Path]:
    """A path next to ``out`` to write a file or a folder to. It becomes ``out``; after an error nothing is left.

    Errors of the file system in the block become OutputError.
    """
    check_free(out, field)
    target = Path(out).resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(HIDDEN, target.parent)
        with scratch_folder(HIDDEN, target.parent) as scratch:
            private = scratch / target.name
            yield private
            private.replace(target)
    except BrokenPipeError:
        raise  # of the terminal
    except OSError as error:
        raise OutputError(f"{field}: {out!r} cannot be written ({error.strerror or error})") from error
