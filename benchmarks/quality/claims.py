"""The papers' claims about the samplers, each judged from the results by a fixed rule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.quality.methods import FID_MARGIN, ON_CLASS_SHARE
from benchmarks.quality.results import HEADINGS, Spread, summary

CLEAR, SLACK = 2.0, 1.0
RULE = (
    f"Higher and lower mean that the means differ by more than {CLEAR:g} pooled standard deviations of one seed, "
    f"`sqrt((s_a^2 + s_b^2) / 2)`. No worse means by at most {SLACK:g} in the wrong direction."
)
VERDICTS = {True: "holds", False: "**does not hold**", None: "not judged"}
COMPARISONS = (  # method, metric, is better or no worse, other method
    ("low-density", "recall", "higher than", "adm"),
    ("low-density", "recall", "higher than", "adm-g"),
    ("low-density", "tail_recall", "higher than", "adm"),
    ("low-density", "tail_recall", "higher than", "adm-g"),
    ("predicted-real", "precision", "no worse than", "adm-g"),
    ("predicted-real", "fid", "no worse than", "adm-g"),
    ("eds", "fid", "no worse than", "adm-g"),
    ("uncond-eds", "fid", "lower than", "uncond-adm-g"),  # the paper: 12.0 to 7.98
    ("uncond-eds-ect", "fid", "lower than", "uncond-adm-g"),  # the paper: 12.0 to 6.78
)
Summary = Mapping[str, Mapping[str, Spread]]


@dataclass(frozen=True)
class Claim:
    """measured: the numbers behind the verdict; holds: None if rows are still missing."""

    text: str
    measured: str
    holds: bool | None


def claims(results: Mapping[str, Any]) -> list[Claim]:
    """All claims: the comparisons, then the bounds on low-density's FID and on-class rate."""
    methods, real = summary(results), results.get("floor", {}).get("on_class")
    return [*(compared(methods, *comparison) for comparison in COMPARISONS), *bounded(methods, real)]


def compared(methods: Summary, method: str, name: str, relation: str, other: str) -> Claim:
    """Whether a metric is better than another method's by more than CLEAR, or no worse by more than SLACK."""
    text = f"`{method}`: {HEADINGS[name]} {relation} with `{other}`"
    if not {method, other} <= methods.keys():
        return Claim(text, "rows are missing", None)
    a, b = methods[method][name], methods[other][name]
    if a.std is None or b.std is None:
        return Claim(text, f"{a} against {b}, one seed only", None)
    gain = (b.mean - a.mean) if name == "fid" else (a.mean - b.mean)
    std = math.sqrt((a.std**2 + b.std**2) / 2)
    holds = gain >= -SLACK * std if relation == "no worse than" else gain > CLEAR * std
    return Claim(text, f"{a} against {b}", holds)


def bounded(methods: Summary, real: float | None) -> list[Claim]:
    """Whether low-density's FID and on-class rate stay close to those of the baselines."""
    fid_text = f"`low-density`: FID at most {FID_MARGIN - 1:.0%} above the better of `adm` and `adm-g`"
    class_text = f"`low-density`: on-class rate at least {ON_CLASS_SHARE:g} times that of real images"
    if real is None or not {"low-density", "adm", "adm-g"} <= methods.keys():
        return [Claim(text, "rows are missing", None) for text in (fid_text, class_text)]
    own, best = methods["low-density"], min(methods[name]["fid"].mean for name in ("adm", "adm-g"))
    return [
        Claim(fid_text, f"{own['fid']} against {best:.4g}", own["fid"].mean <= FID_MARGIN * best),
        Claim(class_text, f"{own['on_class']} against {real:.4g}", own["on_class"].mean >= ON_CLASS_SHARE * real),
    ]
