"""Stores the numbers of plain sampling with a model that ships, for the audits of its other runs.

    rarefy run manifests/plain.toml --out out/plain-0    (and further seeds, and other counts)
    python -m benchmarks.plain out/plain-0 out/plain-1 out/plain-2

Runs with equal settings and counts become one row: the mean of each metric and its standard deviation over the runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rarefy.audit.against import (
    FORMAT,
    SAME_RUN,
    STORED,
    PlainSampling,
    class_counts,
    comparable,
    is_plain,
    shared_of,
    tail_sha256,
)
from rarefy.audit.schema import AuditResult, read_result
from rarefy.errors import DataError, bad
from rarefy.models.folder import LIBRARY, library
from rarefy.shards.store import Store


def plain_row(results: Sequence[AuditResult]) -> PlainSampling:
    """The row of audits with equal settings and counts."""
    first = results[0]
    names = sorted(comparable(dict.fromkeys(first.metrics, 0.0), equal_counts=True, same_tail=True))
    values = {name: [result.metrics[name].value for result in results] for name in names}
    own = {name: getattr(first.provenance, name) for name in SAME_RUN}
    return PlainSampling(
        **own,
        tail_sha256=tail_sha256(first),
        shared=shared_of(first.provenance),
        classes=class_counts(first),
        images=first.provenance.measured,
        runs=len(results),
        metrics={name: float(np.mean(each)) for name, each in values.items()},
        spread={name: float(np.std(each, ddof=1)) if len(each) > 1 else 0.0 for name, each in values.items()},
        intervals={name: found for name in values if (found := mean_interval(name, results)) is not None},
    )


def mean_interval(metric: str, results: Sequence[AuditResult]) -> list[float] | None:
    """The mean of the audits' 95% intervals, too wide for a mean rather than too narrow; None unless all have one."""
    intervals = [result.metrics[metric].interval for result in results]
    known = [interval for interval in intervals if interval is not None]
    return [float(bound) for bound in np.mean(known, axis=0)] if len(known) == len(results) else None


def plain_rows(outs: Sequence[str]) -> tuple[str, list[PlainSampling]]:
    """The model's name, and one row for each setting and count. Raises DataError for runs that are not plain."""
    groups: dict[str, list[AuditResult]] = defaultdict(list)
    presets = set()
    for out in outs:
        result = read_result(Store(out))
        run = result.provenance
        if not is_plain(result) or result.partial or run.preset not in library():
            allowed = "a whole run without guidance, [accept] and [select] of a model that ships"
            raise DataError(bad("runs", out, allowed))
        presets.add(run.preset)
        own = [*(getattr(run, name) for name in SAME_RUN), run.measured, tail_sha256(result)]
        same = own, shared_of(run), class_counts(result)
        groups[json.dumps(same)].append(result)
    if len(presets) != 1:
        raise DataError(bad("runs", sorted(presets), "runs of one model"))
    return presets.pop(), [plain_row(group) for group in groups.values()]


def write_rows(path: Path, rows: Sequence[PlainSampling]) -> None:
    """Write the file that ships with the model."""
    content = {"format": FORMAT, "rows": [dataclasses.asdict(row) for row in rows]}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", metavar="OUT", nargs="+", help="audited runs without guidance")
    arguments = parser.parse_args()
    preset, rows = plain_rows(arguments.runs)
    write_rows(LIBRARY / preset / STORED, rows)
    for row in rows:
        print(f"{preset}: {row.sampler}, {row.images:,} images, {row.runs} runs: {len(row.metrics)} metrics")


if __name__ == "__main__":
    main()
