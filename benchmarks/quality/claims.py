"""What issue 5's claims say of docs/results.json, each judged by a rule that is stated beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.quality.spread import (
    HEADINGS,
    LOWER_IS_BETTER,
    Group,
    Spread,
    groups,
    number,
    paired_difference,
    pooled_std,
)

CLEAR = 2.0
"""Pooled standard deviations of a seed by which a mean must be better to count as better."""
SLACK = 1.0
"""... and by which it may be worse to count as no worse."""
FID_MARGIN = 1.1
ON_CLASS_SHARE = 0.9
RULE = (
    f"Better means: the means differ by more than {CLEAR:g} pooled standard deviations of a seed, "
    f"`sqrt((s_a^2 + s_b^2) / 2)`; no worse: by at most {SLACK:g} in the wrong direction. Seed by seed: the "
    "differences between the two at the same seed, whose images begin from the same noise; no verdict rests on them."
)


@dataclass(frozen=True)
class Claim:
    """holds: None where it cannot be judged yet, for the reason in ``numbers``. subject: the method it is about."""

    subject: str
    text: str
    numbers: str
    holds: bool | None

    @property
    def verdict(self) -> str:
        """As the table says it."""
        return {True: "holds", False: "**does not hold**", None: "not judged"}[self.holds]


def claims(results: Mapping[str, Any]) -> list[Claim]:
    """Every claim, in the issue's order."""
    found = groups(results)
    return [
        *(
            compared(found, "low-density", other, name)
            for name in ("recall", "tail_recall")
            for other in ("adm", "adm-g")
        ),
        fid_within(found),
        on_class(found, results.get("floor", {})),
        compared(found, "predicted-real", "adm-g", "precision", no_worse=True),
        compared(found, "predicted-real", "adm-g", "fid", no_worse=True),
        compared(found, "eds", "adm-g", "fid", no_worse=True),
        compared(found, "uncond-eds", "uncond-adm-g", "fid", paper="12.0 to 7.98"),
        compared(found, "uncond-eds-ect", "uncond-adm-g", "fid", paper="12.0 to 6.78"),
    ]


def compared(
    found: Mapping[str, Group], method: str, other: str, name: str, *, no_worse: bool = False, paper: str = ""
) -> Claim:
    """One metric of two methods: better by more than CLEAR, or no worse by more than SLACK."""
    relation = "no worse than" if no_worse else "below" if name in LOWER_IS_BETTER else "above"
    text = f"`{method}`: {HEADINGS[name]} {relation} `{other}`'s" + (f" (paper: {paper})" if paper else "")
    a, b = _values(found, method, name), _values(found, other, name)
    if a is None or b is None:
        return Claim(method, text, f"not measured: `{other if b is None else method}`", None)
    both, std = f"{a} against {b}", pooled_std(a, b)
    if std is None:
        return Claim(method, text, f"{both}; one seed has no spread", None)
    better = (a.mean - b.mean) * (-1 if name in LOWER_IS_BETTER else 1)
    holds = better >= -SLACK * std if no_worse else better > CLEAR * std
    times = f"{better / std:+.1f} deviations" if std else "no spread"
    paired = paired_difference(found[method], found[other], name)
    by_seed = f"; seed by seed {paired}" if paired else ""
    word = "better" if better >= 0 else "worse"
    return Claim(method, text, f"{both}: {word} by {number(abs(better), 3)} ({times}{by_seed})", holds)


def fid_within(found: Mapping[str, Group]) -> Claim:
    """Low-density's FID beside the better of ADM and ADM-G."""
    text = f"`low-density`: FID at most {FID_MARGIN - 1:.0%} above the better of `adm`'s and `adm-g`'s"
    own, others = _values(found, "low-density", "fid"), [_values(found, name, "fid") for name in ("adm", "adm-g")]
    present = [value for value in others if value is not None]
    if own is None or len(present) < 2:
        return Claim("low-density", text, "not measured", None)
    best = min(present, key=lambda value: value.mean)
    return Claim("low-density", text, f"{own} against {best}: {own.mean / best.mean - 1:+.1%}",
                 own.mean <= FID_MARGIN * best.mean)  # fmt: skip


def on_class(found: Mapping[str, Group], floor: Mapping[str, Any]) -> Claim:
    """Low-density's on-class rate beside that of real test images."""
    text = f"`low-density`: on-class rate at least {ON_CLASS_SHARE:g} of the real images'"
    own, real = _values(found, "low-density", "on_class"), floor.get("on_class")
    if own is None or real is None:
        return Claim("low-density", text, "not measured", None)
    share = own.mean / real
    return Claim("low-density", text, f"{own} against {number(real)}: {number(share, 3)}", share >= ON_CLASS_SHARE)


def answer(results: Mapping[str, Any]) -> list[str]:
    """What RESULTS.md opens with: a few sentences, each from the numbers."""
    found, judged = groups(results), claims(results)
    held = sum(claim.holds is True for claim in judged)
    open_ones = sum(claim.holds is None for claim in judged)
    failed = "; ".join(claim.text for claim in judged if claim.holds is False)
    first = f"{held} of {len(judged)} claims hold" + (f", {open_ones} cannot be judged yet" if open_ones else "")
    return [
        first + (f"; what does not is {failed}." if failed else "."),
        *_of_low_density(found, judged),
        *_of_eds(found),
        *_extremes(found, results.get("floor")),
    ]


def _of_low_density(found: Mapping[str, Group], judged: list[Claim]) -> Iterator[str]:
    names = ("low-density", "adm", "adm-g")
    if not all(_values(found, method, name) for method in names for name in ("fid", "recall", "tail_recall")):
        return
    own, adm, adm_g = (found[method].values for method in names)
    verdicts = [claim.holds for claim in judged if claim.subject == "low-density"]
    failed = sum(verdict is False for verdict in verdicts)
    conclusion = (
        "the paper's claim holds here" if all(verdicts)
        else f"{failed} of its {len(verdicts)} claims fail" if failed
        else "not all of its claims can be judged yet"
    )  # fmt: skip
    yield (
        "The low-density sampler (low-confidence with predicted-real-image guidance) reaches a recall of "
        f"{own['recall']} and a tail recall of {own['tail_recall']}, where plain ADM has {adm['recall']} and "
        f"{adm['tail_recall']} and ADM-G {adm_g['recall']} and {adm_g['tail_recall']}, at an FID of {own['fid']} "
        f"against {adm['fid']} and {adm_g['fid']}: {conclusion}."
    )


def _of_eds(found: Mapping[str, Group]) -> Iterator[str]:
    for prefix, name in (("", "class-conditional"), ("uncond-", "unconditional")):
        values = [_values(found, prefix + method, "fid") for method in ("adm-g", "eds", "eds-ect")]
        plain, eds, ect = values
        if plain is None or eds is None:
            continue
        with_ect = "" if ect is None else f", and with the ECT classifier {ect} ({ect.mean / plain.mean - 1:+.0%})"
        yield (
            f"On the {name} model entropy-aware scaling takes ADM-G's FID from {plain} to {eds} "
            f"({eds.mean / plain.mean - 1:+.0%}){with_ect}."
        )


def _extremes(found: Mapping[str, Group], floor: Mapping[str, Any] | None) -> Iterator[str]:
    measured = [group for group in found.values() if {"fid", "recall"} <= group.values.keys()]
    if measured:
        fid = min(measured, key=lambda group: group.values["fid"].mean)
        recall = max(measured, key=lambda group: group.values["recall"].mean)
        second = "" if fid is recall else f"`{fid.method}` "
        real = f"; as many real images have {number(floor['recall'])} and {number(floor['fid'])}" if floor else ""
        yield (
            f"Of all samplers `{recall.method}` has the highest recall ({recall.values['recall']}) and {second}"
            f"the lowest FID ({fid.values['fid']}){real}."
        )


def _values(found: Mapping[str, Group], method: str, name: str) -> Spread | None:
    return found[method].values.get(name) if method in found else None
