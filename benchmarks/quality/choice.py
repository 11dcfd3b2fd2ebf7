"""How the final table's guidance follows from the sweep: a rule for each kind of method, and what it picks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.quality.claims import FID_MARGIN, ON_CLASS_SHARE
from benchmarks.quality.methods import ADM_G_SCALE, ASIDE, CONDITIONAL, UNCONDITIONAL, Tables
from benchmarks.quality.spread import Row

TIE = 0.01
"""Recalls that differ by no more than this are alike: about the deviation over seeds of 1,000 images."""
RULES_TEXT = (
    "The final table's values are what a rule finds in the rows on the first seed (`jobs/reproduction/choice.py`; a "
    "test holds the table to it); the stages `ablation` and `solver` were made afterwards. The rules were written down "
    "after most of the sweep, and after final rows of other values had been seen for `low-confidence`, "
    "`predicted-real`, `boost-and-skip` and `uncond-low-density`: these four were made anew. `low-confidence`, "
    "`low-density`, `self-guided` and `boost-and-skip` take the "
    f"highest recall among rows with an FID of at most {FID_MARGIN:g} times that of no guidance and an on-class rate "
    f"of at least {ON_CLASS_SHARE:g} times the real images'; of recalls within {TIE:g} of it, the lowest FID. "
    "`predicted-real` takes the lowest FID among those whose precision is at least that of ADM-G alone. ADM-G with and "
    "without EDS takes the lowest FID on the unconditional model. On the conditional one every scale raises FID, so "
    f"ADM-G has scale {ADM_G_SCALE:g} and EDS the scale whose on-class rate is nearest to it. `entropy`, an ablation "
    "of `low-confidence`, has its scale."
)


@dataclass(frozen=True)
class Context:
    """What a method's rows are held against.

    plain: the row without guidance of the same U-Net; adm_g: ADM-G's of the final table, on the conditional one.
    """

    plain: Row
    adm_g: Row
    real_on_class: float


def choose(results: Mapping[str, Any]) -> dict[str, Tables]:
    """The guidance of each method that the sweep has rows of, by the rules of RULES_TEXT."""
    rows: dict[tuple[str, str], list[Row]] = {}
    for row in results["sweep"]:
        if row["stage"] not in ASIDE:
            rows.setdefault((row["preset"], kind(row["guidance"])), []).append(row)
    (adm_g,) = (row for row in rows[CONDITIONAL, "classifier"] if row["guidance"][0]["scale"] == ADM_G_SCALE)
    found: dict[str, Tables] = {}
    for method, (preset, terms, rule) in RULES.items():
        (plain,) = rows[preset.removesuffix("-ect"), ""]
        context = Context(plain, adm_g, results["floor"]["on_class"])
        found[method] = effective(rule(rows[preset, terms], context)["guidance"])
    return found


def effective(guidance: Sequence[Row]) -> Tables:
    """The terms that do something: none of gamma zero."""
    return tuple(table for table in guidance if "gamma" not in table or any(_gammas(table["gamma"])))


def kind(guidance: Sequence[Row]) -> str:
    """The terms' names, with EDS as one of its own."""
    names = ("eds" if table.get("entropy_scaling") else table["term"] for table in effective(guidance))
    return " + ".join(names)


def _gammas(gamma: float | Sequence[Sequence[float]]) -> list[float]:
    return [gamma] if isinstance(gamma, float) else [value for _, value in gamma]


def rarest(rows: Sequence[Row], context: Context) -> Row:
    """The highest recall within the bounds on FID and on-class rate, the lowest FID among those alike."""
    most, least = FID_MARGIN * context.plain["fid"], ON_CLASS_SHARE * context.real_on_class
    allowed = [row for row in rows if row["fid"] <= most and row["on_class"] >= least]
    best = max(row["recall"] for row in allowed)
    return min((row for row in allowed if row["recall"] >= best - TIE), key=_fid)


def most_faithful(rows: Sequence[Row], context: Context) -> Row:
    """The lowest FID among rows at ADM-G's scale that are at least as precise."""
    own = [row for row in rows if row["guidance"][0] == context.adm_g["guidance"][0]]
    return min((row for row in own if row["precision"] >= context.adm_g["precision"]), key=_fid)


def as_strong(rows: Sequence[Row], context: Context) -> Row:
    """The on-class rate nearest to ADM-G's."""
    return min(rows, key=lambda row: abs(row["on_class"] - context.adm_g["on_class"]))


def lowest_fid(rows: Sequence[Row], context: Context) -> Row:
    """The lowest FID."""
    return min(rows, key=_fid)


def _fid(row: Row) -> float:
    return float(row["fid"])


Rule = Callable[[Sequence[Row], Context], Row]
RULES: dict[str, tuple[str, str, Rule]] = {
    "eds": (CONDITIONAL, "eds", as_strong),
    "eds-ect": (f"{CONDITIONAL}-ect", "eds", as_strong),
    "low-confidence": (CONDITIONAL, "low-confidence", rarest),
    "predicted-real": (CONDITIONAL, "classifier + predicted-real-image", most_faithful),
    "low-density": (CONDITIONAL, "low-confidence + predicted-real-image", rarest),
    "self-guided": (CONDITIONAL, "self-guided", rarest),
    "boost-and-skip": (CONDITIONAL, "boost-and-skip", rarest),
    "uncond-adm-g": (UNCONDITIONAL, "classifier", lowest_fid),
    "uncond-eds": (UNCONDITIONAL, "eds", lowest_fid),
    "uncond-eds-ect": (f"{UNCONDITIONAL}-ect", "eds", lowest_fid),
    "uncond-low-density": (UNCONDITIONAL, "low-confidence + predicted-real-image", rarest),
}
"""ModelFolder, kind of guidance and rule of each method that has values to choose."""
