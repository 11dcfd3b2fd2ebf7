"""Fills the tables of docs/RESULTS.md from docs/results.json: ``python -m benchmarks.quality.report``.

The text between the tables is written by hand. ``<!-- NAME -->`` and ``<!-- end -->`` enclose what is replaced.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.quality.claims import RULE, VERDICTS, claims
from benchmarks.quality.figures import write_figures
from benchmarks.quality.methods import METHODS, UNCONDITIONAL, Table
from benchmarks.quality.results import HEADINGS, read_results, spreads, summary
from benchmarks.quality.sweep import ABLATION, SOLVER
from rarefy.audit.metrics.tail import TAIL_SHARE

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
Results = Mapping[str, Any]


def write_report(results: Results, folder: Path) -> None:
    """Write RESULTS.md and its figures into the folder."""
    write_figures(results, folder)
    page = (DOCS / "RESULTS.md").read_text(encoding="utf-8")
    (folder / "RESULTS.md").write_text(filled(page, results), encoding="utf-8")


def filled(page: str, results: Results) -> str:
    """The page with each block made from the results."""
    return BLOCK.sub(lambda match: f"{match[1]}{BLOCKS[match[2]](results)}\n{match[3]}", page)


def _claims(results: Results) -> str:
    """How many claims hold, which do not, and the numbers."""
    judged = claims(results)
    holds, unjudged = (sum(claim.holds is verdict for claim in judged) for verdict in (True, None))
    failed = [f"- {claim.text}" for claim in judged if claim.holds is False]
    first = f"{holds} of {len(judged)} claims hold"
    first += f", {unjudged} cannot be judged yet" if unjudged else ""
    first += f"; {len(failed)} {'does' if len(failed) == 1 else 'do'} not:\n" if failed else "."
    rows = [(claim.text, claim.measured, VERDICTS[claim.holds]) for claim in judged]
    return "\n".join([first, *failed, "", _table(("claim", "measured", "verdict"), rows), "", RULE])


def _setting(results: Results) -> str:
    """What was measured, with the share of the tail that the results file names."""
    setting = results["setting"]
    own = setting["tail"] == TAIL_SHARE
    share = f"{setting['tail']:.0%} of {'each class' if own else 'all real images'}"
    tail = f"Tail recall is recall on the rarest {share}, by AvgkNN."
    if not own:
        tail += (
            f"\nNew runs use the audit's tail, the rarest {TAIL_SHARE:.0%} of each class: the two are not comparable."
        )
    return (
        f"{setting['images']:,} images per sampler and seed against {setting['reference']}; {setting['sampler']};\n"
        f"features of {setting['extractor']}, k = {setting['k']}. {tail}"
    )


def _samplers(results: Results) -> str:
    """A table per model: the real images, then each sampler."""
    real = results.get("floor", {})
    head = ("method", *HEADINGS.values(), "guidance")
    first = ("real images", *(f"{real[name]:.4g}" if name in real else "" for name in HEADINGS), "")
    rows = {
        method: (f"`{method}`", *map(str, values.values()), _terms(METHODS[method][1]))
        for method, values in summary(results).items()
    }
    families = [
        [row for method, row in rows.items() if METHODS[method][0].startswith(UNCONDITIONAL) is unconditional]
        for unconditional in (False, True)
    ]
    return "\n\n".join(_table(head, [first, *family]) for family in families)


def _ablation(results: Results) -> str:
    """The sets of the sweep that leave terms out or change the solver."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in results["sweep"]:
        if row["stage"] in (ABLATION, SOLVER):
            groups.setdefault((row["sampler"], _terms(row["guidance"])), []).append(row)
    rows = [(*group, *map(str, spreads(own).values())) for group, own in groups.items()]
    return _table(("sampler", "guidance", *HEADINGS.values()), rows)


def _terms(guidance: Sequence[Table]) -> str:
    """[[guidance]] tables as code."""
    terms = (
        ", ".join(value if key == "term" else f"{key} = {json.dumps(value)}" for key, value in table.items())
        for table in guidance
    )
    return " + ".join(f"`{term}`" for term in terms) or "none"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


BLOCKS = {"claims": _claims, "setting": _setting, "samplers": _samplers, "ablation": _ablation}

if __name__ == "__main__":
    write_report(read_results(DOCS / "results.json"), DOCS)
