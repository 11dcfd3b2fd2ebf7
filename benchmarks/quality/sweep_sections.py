"""The sections of RESULTS.md on the sweep: what each part of the chosen method does, and every row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.quality.choice import RULES_TEXT
from benchmarks.quality.figures import STAGE
from benchmarks.quality.markdown import details, figure, guidance, plain, table
from benchmarks.quality.methods import ABLATION
from benchmarks.quality.spread import EXTRA, HEADINGS, Row, in_order, number, spread
from benchmarks.quality.texts import ABLATION_TEXT

ABLATION_COLUMNS = {
    name: (HEADINGS | EXTRA)[name]
    for name in ("fid", "precision", "recall", "tail_recall", "on_class", "confidence", "variance")
}


def ablation_section(rows: Sequence[Row]) -> list[str]:
    """What each part of the chosen method does, a line a combination; rows: all of the sweep."""
    own_rows = [row for row in rows if row["stage"] == ABLATION]
    if not own_rows:
        return []
    combinations: dict[tuple[Any, ...], list[Row]] = {}
    for row in own_rows:
        combinations.setdefault(tuple(row["values"][key] for key in ("steps", "confidence", "gamma")), []).append(row)
    cells = [
        (
            str(steps),
            " + ".join(name for name, on in (("low-confidence", confidence), ("predicted-real-image", gamma)) if on)
            or "none",
            str(len(own)),
            *(str(spread([row[name] for row in own])) for name in ABLATION_COLUMNS),
        )
        for (steps, confidence, gamma), own in sorted(combinations.items())
    ]
    head = ("steps", "terms", "seeds", *ABLATION_COLUMNS.values())
    text = ABLATION_TEXT.format(count=own_rows[0]["count"])
    return ["## What each part of `low-density` does", text, table(head, cells, text=2)]


def sweep_section(rows: Sequence[Row], figures: Sequence[str], final_seeds: set[int]) -> list[str]:
    """The sweep's rows, a folded table a stage, and the heat maps."""
    if not rows:
        return []
    stages: dict[str, list[Row]] = {}
    for row in rows:
        stages.setdefault(row["stage"], []).append(row)
    seeds = sorted({row["seed"] for row in rows})
    parts = [
        "## The sweep",
        f"{len(rows)} rows, {_on_seeds(seeds, final_seeds)}. {RULES_TEXT}",
        *figure(figures, "results-sweep.svg", f"Recall and FID, {STAGE}"),
    ]
    return [*parts, *(details(f"{stage} ({len(own)})", _stage(own)) for stage, own in stages.items())]


def _on_seeds(seeds: Sequence[int], final_seeds: set[int]) -> str:
    """Which seeds, and whether the final table has them too."""
    named, shared = ", ".join(map(str, seeds)), sorted(final_seeds & set(seeds))
    apart = (
        f"of which the final table uses {', '.join(map(str, shared))} too"
        if shared
        else "none of which the final table uses"
    )
    return f"on seeds {named}, {apart}"


def _stage(rows: Sequence[Row]) -> str:
    keys = list(dict.fromkeys(key for row in rows for key in row["values"]))
    headings = HEADINGS | EXTRA
    names = [name for name in headings if any(name in row for row in rows)]
    head = ("name", *keys, *(headings[name] for name in names), "images", "seed", "preset", "guidance")
    cells = [
        (
            row["name"],
            *(plain(row["values"][key]) if key in row["values"] else "" for key in keys),
            *(number(row.get(name)) for name in names),
            *(str(row.get(key, "")) for key in ("count", "seed", "preset")),
            guidance(row["guidance"]),
        )
        for row in sorted(rows, key=_sweep_place)
    ]
    return table(head, cells, text=1)


def _sweep_place(row: Row) -> tuple[Any, ...]:
    return row["preset"], [in_order(value) for value in row["values"].values()], row["seed"]
