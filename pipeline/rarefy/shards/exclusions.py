"""The exclusion list: keys of images that a person does not want, in ``excluded.txt`` in the data set's folder.

One key per line. Blank lines and lines that begin with ``#`` are ignored. Nothing in the data set itself changes.
"""

from __future__ import annotations

import re

from rarefy.errors import DataError, bad
from rarefy.shards.store import Store

EXCLUDED = "excluded.txt"
KEY = re.compile(r"[0-9]{11,}", re.ASCII)
ALLOWED = "a sample key, such as 00000200017"


def read_lines(data: Store) -> dict[str, int]:
    """The number of the line that excludes each key. data: the data set's own folder. Raises DataError."""
    content = data.read_or_none(EXCLUDED) or b""
    lines: dict[str, int] = {}
    for number, line in enumerate(content.decode("utf-8", "backslashreplace").splitlines(), 1):
        key = line.strip()
        if not key or key.startswith("#"):
            continue
        if not KEY.fullmatch(key):
            raise DataError(bad(f"{place(data)} line {number}", key, ALLOWED))
        lines.setdefault(key, number)
    return lines


def place(data: Store) -> str:
    """Where the list of a data set is, for messages."""
    return f"{data.root}/{EXCLUDED}"
