"""Renders the pages' templates, writes pages, and formats numbers for people."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rarefy.audit.metrics.kinds import METRIC_KINDS, metric_label
from rarefy.audit.schema import MetricEntry
from rarefy.errors import OutputError, bad
from rarefy.gates import metric_kind
from rarefy.shards.store import Store

TEMPLATES = Path(__file__).parent
NOTHING = 1e-12  # smaller values are rounding errors of 0
EN_DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


def render(template: str, values: Mapping[str, Any], filters: Sequence[Callable[..., str]] = ()) -> bytes:
    """Render a template of this folder as UTF-8. Values are escaped; a missing value is an error.

    filters: further functions that the template calls by name.

    The page's Content-Security-Policy allows its own script, by hash, and nothing else.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    each_filter = (number, interval, signed, reached, meaning, direction, metric_kind, *filters)
    environment.filters |= {each.__name__: each for each in each_filter} | {"label": metric_label}
    script = environment.get_template("page.js.j2").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template(template).render(values, script=Markup(script), script_digest=digest)
    return page.encode()


def number(value: float | None, digits: int = 3) -> str:
    """Format a number: thousands separated, ``digits`` decimals below ten, two figures if tiny, a dash for None."""
    if value is None:
        return EN_DASH
    if isinstance(value, int):
        return f"{value:,}"
    value = 0.0 if abs(value) < NOTHING else value
    if abs(value) >= 1000:
        text = f"{value:,.0f}"
    elif abs(value) >= 10:
        text = f"{value:.1f}"
    elif 0 < abs(value) < 0.01:
        text = f"{value:.2g}"
    else:
        text = f"{value:.{digits}f}"
    return text.replace("-", MINUS)


def save_page(field: str, path: str, page: bytes) -> None:
    """Write a page whole to a local path or fsspec URL, also in a new folder. field: names the path in errors.

    Raises OutputError, or StorageError if a repetition may succeed.
    """
    folder, slash, name = path.rpartition("/")
    if not name:
        raise OutputError(bad(field, path, "the path of a file"))
    try:
        Store(folder or slash or ".").write_bytes(name, page)
    except OutputError as error:
        raise type(error)(f"{field}: {str(error).removeprefix('out: ')}") from error


def interval(bounds: list[float] | None) -> str:
    """``low to high``, or nothing if there is no interval."""
    return "" if bounds is None else f"{number(bounds[0])} to {number(bounds[1])}"


def signed(value: float | None) -> str:
    """Format a difference with its sign."""
    return number(value) if value is None or value <= 0 else f"+{number(value)}"


def reached(entry: MetricEntry) -> float | None:
    """How much of the real baseline is reached: value / baseline if higher is better, baseline / value if lower is."""
    value, baseline = entry.value, entry.floor
    if baseline is None or value <= 0 or baseline <= 0 or entry.better not in ("higher", "lower"):
        return None
    return value / baseline if entry.better == "higher" else baseline / value


def direction(better: str) -> str:
    """Which values are good, in words."""
    if better == "nearest":
        return "nearest to the real baseline is best"
    return "neither high nor low is better" if better == "neither" else f"{better} is better"


def meaning(name: str) -> str:
    """What a metric of metrics.json measures; empty for an unknown name."""
    kind = METRIC_KINDS.get(metric_kind(name))
    return kind.meaning if kind else ""
