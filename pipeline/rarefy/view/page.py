"""Renders the page of ``rarefy view`` and gallery.html, which share their template and most of their script."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rarefy.audit.page.templates import TEMPLATES

HERE = Path(__file__).parent
SHARED, LIVE, STATIC = "grid.js", "live.js", "static.js"


@dataclass(frozen=True)
class Page:
    """What the template shows. name: of the run; state: a line about it; notes: further lines; help: about dropping."""

    name: str
    state: str
    help: str
    notes: Sequence[str] = ()


def render(page: Page, live: bool, data: object) -> bytes:
    """The page as UTF-8. data: what its script reads, as JSON. Its policy allows this script, by hash, and no other."""
    environment = Environment(
        loader=FileSystemLoader([HERE, TEMPLATES]), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    script = "\n".join((HERE / name).read_text("utf-8") for name in (SHARED, LIVE if live else STATIC))
    # In a script element, HTML knows no escapes; in JSON, "<" may be written as a code.
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    values = vars(page) | {
        "live": live,
        "data": Markup(text),
        "script": Markup(script),
        "script_digest": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }
    return environment.get_template("page.html.j2").render(values).encode()
