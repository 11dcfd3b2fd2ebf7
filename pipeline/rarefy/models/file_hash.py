"""The hash by which provenance and manifests know a weights file."""

from __future__ import annotations

import hashlib
from pathlib import Path

from rarefy.errors import CheckpointError


def file_sha256(path: Path) -> str:
    """sha256 of a file, hex. Raises CheckpointError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"checkpoint: {str(path)!r} cannot be read ({error.strerror})") from error
