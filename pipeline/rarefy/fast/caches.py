"""Where Triton and torch.compile keep what they build. It is code that this process runs later."""

from __future__ import annotations

import atexit
import functools
import os
from contextlib import ExitStack
from pathlib import Path

from rarefy.scratch import scratch_folder
from rarefy.user_cache import private_cache

CACHES = {"TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor"}


def place_caches() -> None:
    """Choose folders that nobody else can write to, unless the user has chosen: torch's own default is one in /tmp.

    They are in the user's cache or, where that cannot be written, in a temporary folder of this process.
    """
    for variable, name in CACHES.items():
        if not os.environ.get(variable):
            os.environ[variable] = str(private_cache(name) or _own_folder() / name)


@functools.cache
def _own_folder() -> Path:
    """A folder that lives as long as this process."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(scratch_folder())
