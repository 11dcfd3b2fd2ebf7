"""Hypothesis strategies for files that people write: valid content with anything put anywhere."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# The same examples in every run, so that a failure is repeatable; deadlines would fail on a loaded machine.
BOUNDED = settings(
    max_examples=int(os.environ.get("RAREFY_FUZZ_EXAMPLES", "25")),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)

HUGE = [2**31, 2**63, 2**64 - 1, 10**30, 10**400, -1, 0, 1e308, -1e-320, math.inf, -math.inf, math.nan, True]
TEXTS = [
    "",
    " ",
    "\x00",
    "a\nb",
    "../../etc/passwd",
    "/dev/zero",
    "~nobody/x",
    "é" * 300,
    "x" * 10_000,
    "1e9",
    "logsnr9",
]
KEYS = st.sampled_from(["", "a", "kind", "path", "min", "\x00", "ü", "x" * 2000]) | st.text(max_size=8)
SCALARS = (
    st.sampled_from(HUGE) | st.sampled_from(TEXTS) | st.text(max_size=20) | st.integers() | st.floats() | st.booleans()
)


def _any(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4))


OF_TOML, OF_JSON = _any(SCALARS), _any(SCALARS | st.none())


@st.composite
def changed(draw: st.DrawFn, valid: list[Any], with_null: bool = False) -> Any:
    """A valid content in which up to three values are replaced, removed, or given new neighbours."""
    content = copy.deepcopy(valid[draw(st.integers(0, len(valid) - 1))])
    values = OF_JSON if with_null else OF_TOML
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(content))
        if not places:
            break
        parent, key = places[draw(st.integers(0, len(places) - 1))]
        how = draw(st.integers(0, 4))
        if how == 0:
            del parent[key]
        elif how == 1 and isinstance(parent, dict):
            parent[draw(KEYS)] = draw(values)
        else:
            parent[key] = draw(values)
    return content


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(content, dict | list):
        for key in list(content) if isinstance(content, dict) else range(len(content)):
            yield content, key
            yield from _places(content[key])


def to_toml(content: Mapping[str, Any]) -> str:
    """A table as TOML: one key a line, inline values."""
    return "".join(f"{_text(key)} = {_toml(value)}\n" for key, value in content.items())


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_text(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return hex(value) if value > 2**64 else str(value)  # Python refuses to print integers of many digits
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    return _text(value)


def _text(text: str) -> str:
    return json.dumps(text.encode("utf-8", "replace").decode()).replace("\x7f", "\\u007f")
