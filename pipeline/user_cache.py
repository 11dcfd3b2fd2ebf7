"""Where on the user's disk the things are kept that cost time and never change."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path:
    """``$XDG_CACHE_HOME/rarefy``, by default under ``~/.cache``; it may not exist or be writable."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG rules ignore a relative path; a user without a home has nowhere to keep anything.
    return (base if base.is_absolute() else Path(os.path.expanduser("~/.cache"))) / "rarefy"  # noqa: PTH111 - never raises
