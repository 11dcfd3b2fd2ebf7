"""The sweep over guidance values, and the rules that choose the final table's values from it.

The points of the sweep are data: every sweep row of docs/results.json names its guidance, sampler and seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from benchmarks.quality.methods import ADM_G, FID_MARGIN, METHODS, ON_CLASS_SHARE, ImageSet, Table, Tables

Row = Mapping[str, Any]
ABLATION, SOLVER = "ablation", "solver"  # stages that explain the choice but do not enter it
TIE = 0.01  # recalls this close count as equal: about the standard deviation over seeds with 1,000 images


def sweep_sets(rows: Sequence[Row], images: int) -> list[ImageSet]:
    """The sets of images that sweep rows describe."""
    sets = []
    for row in rows:
        method, steps, *_ = row["sampler"].split(", ")
        guidance, solver = tuple(row["guidance"]), (method, int(steps.removesuffix(" steps")))
        sets.append(
            ImageSet(row["stage"], row["name"], row["preset"], guidance, row["seed"], images, row["values"], *solver)
        )
    return sets


def choose(results: Mapping[str, Any]) -> dict[str, Tables]:
    """The guidance that the rules choose for each method, from the rows of the sweep."""

    def swept(method: str) -> list[Row]:
        rows = [row for row in results["sweep"] if row["stage"] not in (ABLATION, SOLVER)]
        preset, guidance = METHODS[method]
        return [row for row in rows if (row["preset"], _kind(row["guidance"])) == (preset, _kind(guidance))]

    fid = itemgetter("fid")
    adm_g = next(row for row in swept("adm-g") if row["guidance"] == [ADM_G])
    same_scale = [row for row in swept("predicted-real") if row["guidance"][0] == ADM_G]
    chosen = {"predicted-real": min((row for row in same_scale if row["precision"] >= adm_g["precision"]), key=fid)}
    for method in ("eds", "eds-ect"):
        chosen[method] = min(swept(method), key=lambda row: abs(row["on_class"] - adm_g["on_class"]))
    for method in ("uncond-adm-g", "uncond-eds", "uncond-eds-ect"):
        chosen[method] = min(swept(method), key=fid)
    for method in ("low-confidence", "low-density", "self-guided", "boost-and-skip", "uncond-low-density"):
        (plain,) = swept("uncond-adm" if method.startswith("uncond-") else "adm")
        highest_fid, lowest_rate = FID_MARGIN * plain["fid"], ON_CLASS_SHARE * results["floor"]["on_class"]
        allowed = [row for row in swept(method) if row["fid"] <= highest_fid and row["on_class"] >= lowest_rate]
        best = max(row["recall"] for row in allowed)
        chosen[method] = min((row for row in allowed if row["recall"] >= best - TIE), key=fid)
    return {method: effective(row["guidance"]) for method, row in chosen.items()}


def effective(guidance: Sequence[Table]) -> Tables:
    """The terms that change something: not those whose gamma is zero at all times."""
    return tuple(t for t in guidance if t["term"] != "predicted-real-image" or any(gamma for _, gamma in t["gamma"]))


def _kind(guidance: Sequence[Table]) -> str:
    """The names of the effective terms, with EDS as one of its own."""
    return " + ".join("eds" if t.get("entropy_scaling") else t["term"] for t in effective(guidance))
