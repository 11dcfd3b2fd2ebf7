"""Renders the pages' templates, and formats numbers for people."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

EN_DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


def render(template: str, values: Mapping[str, Any]) -> bytes:
    """Render a template of this folder as UTF-8. Values are escaped; a missing value is an error.

    The page's Content-Security-Policy allows its own script, by hash, and nothing else.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "interval": interval, "signed": signed}
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
    if abs(value) >= 1000:
        text = f"{value:,.0f}"
    elif abs(value) >= 10:
        text = f"{value:.1f}"
    elif 0 < abs(value) < 0.01:
        text = f"{value:.2g}"
    else:
        text = f"{value:.{digits}f}"
    return text.replace("-", MINUS)


def interval(bounds: list[float] | None) -> str:
    """``low to high``, or nothing if there is no interval."""
    return "" if bounds is None else f"{number(bounds[0])} to {number(bounds[1])}"


def signed(value: float | None) -> str:
    """Format a difference with its sign."""
    return number(value) if value is None or value <= 0 else f"+{number(value)}"
