"""``[classes] fill`` of a manifest: as many new images of each class as a folder of real images lacks.

The folder's images are counted when the manifest is read. What is counted becomes the manifest's ``counts``, so that a
run can be read and resumed without the folder, and its digest depends on the numbers and not on where the folder is.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rarefy.errors import ManifestError, bad
from rarefy.fields import Table, check_integer, get_integer, get_path, get_table, known_keys
from rarefy.images import class_ids, open_source
from rarefy.models.folder import ModelFolder

COUNTED_BY = ("per_class", "total", "counts", "fill")
MOST = 10**12


@dataclass(frozen=True)
class Fill:
    """data: the real images; to: how many images each class is filled up to, None for as many as the largest has."""

    data: str
    to: int | None = None


def given_fill(data: str | None, to: int | None) -> Fill | None:
    """The fill that a command line gives. Raises ManifestError for a target without data."""
    if data is None:
        if to is not None:
            raise ManifestError(bad("to", to, "allowed without --fill DATA"))
        return None
    return Fill(data, None if to is None else check_integer(to, "to", 1, MOST))


@dataclass(frozen=True)
class Filled:
    """The [classes] table with ``counts`` instead of ``fill``, and the real images by class id.

    text: the manifest's text, in which the line of ``fill`` became a comment above ``counts``.
    """

    classes: Table
    real: Mapping[int, int]
    text: str


def resolve_fill(text: str, classes: Table, model: ModelFolder, folder: Path) -> Filled:
    """Replace ``fill`` by the counts that it means. folder: where relative paths start.

    Without ``fill`` nothing changes. Raises ManifestError, and DataError for images that cannot be counted or matched.
    """
    if "fill" not in classes:
        return Filled(classes, {}, text)
    if ways := [key for key in (*COUNTED_BY[:3], "ids") if key in classes]:
        raise ManifestError(bad("classes", ["fill", *ways], f"exactly one of {', '.join(COUNTED_BY)}"))
    fill = _parse(get_table(classes, "classes.fill"), folder)
    real = count_real(fill.data, model)
    counts = missing(fill, real, model)
    rest = {key: value for key, value in classes.items() if key != "fill"}
    return Filled({**rest, "counts": counts}, real, _with_counts(text, counts))


def _parse(table: Table, folder: Path) -> Fill:
    known_keys(table, "classes.fill", ("data", "to"))
    data = get_path(table, "classes.fill.data", folder)
    if data is None:
        raise ManifestError(bad("classes.fill.data", table.get("data"), "the path of a folder of images"))
    return Fill(data, get_integer(table, "classes.fill.to", 1, MOST) if "to" in table else None)


def count_real(data: str, model: ModelFolder) -> dict[int, int]:
    """Real images by class id of the model, for each of its classes. Images are listed, not read."""
    source = open_source(data)
    ids = class_ids(source, model.classes)
    found = Counter(ids[item.label] for item in source.items)
    return {class_id: found[class_id] for class_id in range(model.classifier_classes)}


def trained_on(model: ModelFolder) -> dict[int, int]:
    """Images by class id that the model was trained on, as its folder says; empty if it does not."""
    try:
        record = json.loads((model.path / "provenance.json").read_text(encoding="utf-8"))
        counts = record["diffusion"]["classes"]
        return {class_id: int(counts[name]) for class_id, name in enumerate(model.class_names)}
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return {}


def missing(fill: Fill, real: Mapping[int, int], model: ModelFolder) -> dict[str, int]:
    """Images to make, by class name, of the classes that have too few. Raises ManifestError if no class has."""
    to = max(real.values()) if fill.to is None else fill.to
    counts = {model.class_name(class_id): to - n for class_id, n in real.items() if n < to}
    if not counts:
        allowed = f"more than the {min(real.values()):,} images that every class has: there is nothing to fill"
        raise ManifestError(bad("classes.fill.to", to, allowed))
    return counts


def _with_counts(text: str, counts: Mapping[str, int]) -> str:
    """The text with ``counts`` instead of ``fill``; everything else stays as it is. Checked by reading both."""
    wanted = tomllib.loads(text)
    del wanted["classes"]["fill"]
    wanted["classes"]["counts"] = counts
    items = ", ".join(f"{json.dumps(name, ensure_ascii=False)} = {n}" for name, n in counts.items())
    for line in re.finditer(r"^[ \t]*fill[ \t]*=.*$", text, re.MULTILINE):
        replaced = f"{text[: line.start()]}# {line.group().strip()}\ncounts = {{ {items} }}{text[line.end() :]}"
        try:
            if tomllib.loads(replaced) == wanted:
                return replaced
        except tomllib.TOMLDecodeError:
            continue
    raise ManifestError(bad("classes.fill", "this table", "written on one line: fill = { data = ..., to = ... }"))
