"""docs/RESULTS.md and its figures, from docs/results.json alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.quality.claims import RULE, answer, claims
from benchmarks.quality.figures import write_figures
from benchmarks.quality.markdown import details, figure, guidance, pairs, table
from benchmarks.quality.spread import HEADINGS, SEEDS, UNCONDITIONAL, Group, Row, groups, number
from benchmarks.quality.sweep_sections import ablation_section, sweep_section
from benchmarks.quality.texts import DESCRIPTIONS, FINAL, LIMITS, REPRODUCE

NOTES = Path(__file__).with_name("notes.md")
DIGEST = 16  # characters of a digest that are shown
HEAD = ("method", "seeds", *HEADINGS.values())


def write_report(results: Mapping[str, Any], folder: Path, notes: Path = NOTES) -> None:
    """Write RESULTS.md and the figures that results have the numbers of into the folder, which exists.

    results: the content of docs/results.json; notes: Markdown of a person's, inserted where there is such a file.
    """
    figures = write_figures(results, folder)
    discussion = notes.read_text(encoding="utf-8") if notes.is_file() else ""
    (folder / "RESULTS.md").write_text(markdown(results, figures, discussion), encoding="utf-8")


def markdown(results: Mapping[str, Any], figures: Sequence[str], discussion: str = "") -> str:
    """The page. figures: names of those that were drawn; discussion: Markdown without a heading of its own."""
    found = groups(results)
    parts = [
        "# Results",
        " ".join(answer(results)),
        *_under_way(found),
        *_setting(results),
        "## Claims",
        _claims(results),
        f"{RULE} Means and standard deviations are over a method's seeds.",
        *figure(figures, "results-plane.svg", "Recall against FID, a point a sampler"),
        "## Every sampler",
        *_final(found, results.get("floor", {})),
        *_methods(found),
        *ablation_section(results["sweep"]),
        *_discussion(discussion),
        *sweep_section(results["sweep"], figures, {row["seed"] for row in results["final"]}),
        *_traces(results.get("traces"), figures),
        "## How to reproduce",
        " ".join([REPRODUCE, *_provenance(results)]),
        "## Limits",
        LIMITS,
    ]
    return "\n\n".join(parts) + "\n"


def _under_way(found: Mapping[str, Group]) -> list[str]:
    """What is missing of SEEDS seeds a method."""
    counts = [(len(group.rows), method) for method, group in found.items() if len(group.rows) < SEEDS]
    if not counts:
        return []
    named = (
        f"{count} of {SEEDS} seeds of {', '.join(f'`{method}`' for _, method in entries)}"
        for count, entries in groupby(sorted(counts, key=lambda entry: entry[0]), key=lambda entry: entry[0])
    )
    return [f"**Under way**: so far there are {'; '.join(named)}. A number without ± is of one seed."]


def _setting(results: Mapping[str, Any]) -> list[str]:
    terms = "The terms are in [METHODS.md](METHODS.md)."
    return [f"Setting: {pairs(results['setting'])}. {terms}" if results.get("setting") else terms]


def _provenance(results: Mapping[str, Any]) -> list[str]:
    """Which command made the rows, where and when, as far as results say so."""
    said = {key: results[key] for key in ("command", "date") if key in results} | {**results.get("machine", {})}
    return [f"The latest rows: {pairs(said)}."] if said else []


def _claims(results: Mapping[str, Any]) -> str:
    rows = [(claim.text, claim.numbers, claim.verdict) for claim in claims(results)]
    return table(("claim", "measured", ""), rows, text=3)


def _final(found: Mapping[str, Group], floor: Mapping[str, Any]) -> list[str]:
    real = ("real images", "", *(number(floor.get(name)) for name in HEADINGS))
    parts = [FINAL]
    for name, unconditional in (("Class-conditional ADM", False), ("Unconditional ADM", True)):
        own = [group for group in found.values() if group.unconditional is unconditional]
        if own:
            rows = [(f"`{g.method}`", str(len(g.rows)), *_values(g)) for g in own]
            parts += [f"**{name}**", table(HEAD, [real, *rows], text=1)]
    rows = [_single(row) for group in found.values() for row in group.rows]
    head = ("method", "seed", *HEADINGS.values(), "images", "preset", "sampler", "manifest's digest")
    return [*parts, details("Every seed's row", table(head, rows, text=1))]


def _values(group: Group) -> list[str]:
    return [str(group.values.get(name, "")) for name in HEADINGS]


def _single(row: Row) -> tuple[str, ...]:
    values = (number(row.get(name)) for name in HEADINGS)
    rest = (str(row.get(name, "")) for name in ("count", "preset", "sampler"))
    return (f"`{row['method']}`", str(row["seed"]), *values, *rest, row.get("digest", "")[:DIGEST])


def _methods(found: Mapping[str, Group]) -> list[str]:
    """What each method is, and its guidance."""
    rows = [(f"`{name}`", _described(name), guidance(group.rows[0]["guidance"])) for name, group in found.items()]
    return ["## Settings of the samplers", table(("method", "what it is", "guidance"), rows, text=3)] if rows else []


def _described(method: str) -> str:
    return DESCRIPTIONS.get(method.removeprefix(UNCONDITIONAL), "")


def _discussion(text: str) -> list[str]:
    return ["## What was found on the way", text.strip()] if text.strip() else []


def _traces(traces: Mapping[str, Any] | None, figures: Sequence[str]) -> list[str]:
    """The figures of ECT and EDS, each with what its numbers say."""
    if not traces:
        return []
    chains = traces["chains"].items()
    places = [("at noised real images", traces["noised"])]
    places += [(f"in ADM-G's chain on the {name} model", chain) for name, chain in chains]
    entropies = "; ".join(f"{_entropies(found)} {place}" for place, found in places)
    norms = "; ".join(f"{_norms(chain['gradient'])} on the {name} model" for name, chain in chains)
    return [
        "## What ECT and EDS do along t",
        f"{traces['images']} images a chain, guidance of scale {number(traces['scale'])}, {traces['sampler']}; lines "
        "are means, bands reach from the 10% to the 90% quantile of the images.",
        *figure(figures, "results-entropy.svg", "Entropy of p(y|x_t) along t"),
        "Mean entropy over the less noisy half of the steps, of at most "
        f"{number(math.log(traces['classes']), 3)} nats: {entropies}.",
        *figure(figures, "results-gradient.svg", "Norm of the guidance along t"),
        f"Norm over the less noisy half of the steps, mean of the images: {norms}.",
    ]


def _entropies(found: Row) -> str:
    """Mean entropies late in the chain, and whether ECT raises them."""
    plain, ect = (_late(found["entropy"][name]["mean"]) for name in ("plain", "ect"))
    return f"ECT {'raises' if ect > plain else 'does not raise'} it, {number(plain, 3)} to {number(ect, 3)},"


def _norms(gradient: Mapping[str, Row]) -> str:
    """Norms late in the chain, mean and low, and whether EDS raises them."""
    mean, low = ([_late(gradient[name][key]) for name in ("adm-g", "eds", "eds-ect")] for key in ("mean", "low"))
    means, lows = ([number(value, 2) for value in values] for values in (mean, low))
    return (
        f"EDS {'raises' if mean[1] > mean[0] else 'does not raise'} it, {means[0]} to {means[1]} and with the ECT "
        f"classifier {means[2]}, and the 10% quantile from {lows[0]} to {lows[1]} and {lows[2]},"
    )


def _late(values: Sequence[float]) -> float:
    """Mean over the less noisy half of the steps; values are in ascending t."""
    return statistics.fmean(values[: len(values) // 2])
