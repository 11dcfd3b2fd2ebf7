"""The results file: one row per set of images, tied to its manifest and weights, and statistics over seeds."""

from __future__ import annotations

import functools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.quality.methods import METHODS, ImageSet
from rarefy.errors import DataError, bad
from rarefy.models.file_hash import file_sha256
from rarefy.models.folder import find_model

FORMAT = "rarefy-results-v1"
HEADINGS = {
    "fid": "FID", "precision": "precision", "recall": "recall", "tail_recall": "tail recall", "density": "density",
    "coverage": "coverage", "rarity": "rarity", "confidence": "confidence", "on_class": "on class",
}  # fmt: skip
Row = dict[str, Any]
Results = dict[str, Any]


def read_results(path: Path) -> Results:
    """The results so far. Raises DataError for a file of another format."""
    if not path.exists():
        return {"format": FORMAT, "final": [], "sweep": []}
    try:
        results = json.loads(path.read_text())
    except ValueError:
        results = None
    if not isinstance(results, dict) or results.get("format") != FORMAT:
        raise DataError(bad("--results", str(path), f"a JSON file of format {FORMAT}"))
    return results


def write_results(path: Path, results: Results) -> None:
    """Write the file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(results, indent=1) + "\n")
    temporary.replace(path)


def identity(image_set: ImageSet) -> dict[str, str]:
    """Everything that a row depends on: the manifest and the files of the networks and the judge."""
    return {"manifest": image_set.manifest.digest, **_weights(image_set.preset)}


@functools.cache
def _weights(preset: str) -> dict[str, str]:
    return {role: file_sha256(find_model(preset).file(role)) for role in ("unet", "classifier", "judge")}


def missing(results: Results, sets: Sequence[ImageSet]) -> list[ImageSet]:
    """The sets that have no row yet."""
    rows = [row["identity"] for row in (*results["final"], *results["sweep"])]
    return [image_set for image_set in sets if identity(image_set) not in rows]


def row_of(image_set: ImageSet, metrics: Mapping[str, float]) -> Row:
    """A row of the results file."""
    names = {"method": image_set.name} if image_set.stage == "final" else {"stage": image_set.stage}
    copied = {name: getattr(image_set, name) for name in ("name", "seed", "preset", "guidance", "values", "sampler")}
    numbers = {name: round(value, 6) for name, value in metrics.items()}
    return names | copied | numbers | {"identity": identity(image_set)}


def with_row(rows: Sequence[Row], row: Row) -> list[Row]:
    """The rows with a new one, which replaces an older row of the same stage, name and seed."""
    place = (row.get("stage"), row["name"], row["seed"])
    return [*(other for other in rows if (other.get("stage"), other["name"], other["seed"]) != place), row]


@dataclass(frozen=True)
class Spread:
    """A metric over seeds. std: of a single seed (n - 1); None where there is only one seed."""

    mean: float
    std: float | None

    def __str__(self) -> str:
        if not self.std:
            return f"{self.mean:.4g}"
        decimals = min(max(1 - math.floor(math.log10(self.std)), 0), 4)  # two significant digits of the deviation
        return f"{self.mean:.{decimals}f} ± {self.std:.{decimals}f}"


def spreads(rows: Sequence[Row]) -> dict[str, Spread]:
    """Mean and standard deviation of each metric over at least one row."""
    columns = {name: [row[name] for row in rows] for name in HEADINGS}
    return {
        name: Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)
        for name, values in columns.items()
    }


def summary(results: Mapping[str, Any]) -> dict[str, dict[str, Spread]]:
    """Spread over seeds by method and metric, in the order of METHODS."""
    rows = {method: [row for row in results["final"] if row["method"] == method] for method in METHODS}
    return {method: spreads(own) for method, own in rows.items() if own}
