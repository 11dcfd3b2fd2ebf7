"""The audit's results on the data set's card, README.md."""

from __future__ import annotations

from rarefy.audit.inputs.dataset import read_manifest
from rarefy.audit.schema import AuditResult, MetricEntry
from rarefy.audit.verdict import judge, outcome
from rarefy.plan import data_store
from rarefy.shards.card import with_audit
from rarefy.shards.store import Store
from rarefy.shards.verify import CARD

SAMPLE_PATH = "sample.png"  # next to the card, so that both are uploaded together
ALSO = ("rarity", "outside", "utility", "tail_utility")  # shown although they do not decide, or not always


def write_audit(store: Store, result: AuditResult, picture: bytes | None) -> None:
    """Write the results, and the picture of the data set if there is one, to the card of a sealed data set."""
    data = data_store(store, read_manifest(store))
    if picture is not None:
        data.write_bytes(SAMPLE_PATH, picture)
    _replace(data, _section(result, picture is not None or data.exists(SAMPLE_PATH)))


def remove_audit(store: Store) -> None:
    """Make the card say that the data set is not audited."""
    data = data_store(store, read_manifest(store))
    _replace(data, None)
    data.delete(SAMPLE_PATH)


def _replace(data: Store, section: str | None) -> None:
    old = data.read_or_none(CARD)
    if old is None:
        return  # not sealed
    new = with_audit(old.decode(), section).encode()
    if new != old:
        data.write_bytes(CARD, new)


def _section(result: AuditResult, picture: bool) -> str:
    verdict, run = judge(result), result.provenance
    lines = ["## Audit", "", f"**{verdict.headline}.**", "", *verdict.lines, ""]
    if picture:
        lines += [f"![Each class: images at random, then its rarest]({SAMPLE_PATH})", ""]
    if verdict.reasons:
        lines += [*(f"- {outcome(reason)}: {reason.text}" for reason in verdict.reasons), ""]
    also = [(name, result.metrics[name]) for name in ALSO if name in result.metrics]
    if also:
        lines += ["| metric | value | 95% interval | real baseline |", "|---|---|---|---|"]
        lines += [*(_row(name, entry) for name, entry in also), ""]
    lines += [_measured(result), *_copies(result), *_exceptions(result)]
    lines.append(f"Audited at {run.created_at} with rarefy; `audit/metrics.json` has every number.")
    lines.append("`rarefy report` writes `audit/report.html` and `audit/gallery.html`, which show the images.")
    return "\n".join(lines) + "\n"


def _row(name: str, entry: MetricEntry) -> str:
    interval = f"{entry.interval[0]:.4g} to {entry.interval[1]:.4g}" if entry.interval else ""
    return f"| {name} | {entry.value:.4g} | {interval} | {'' if entry.floor is None else f'{entry.floor:.4g}'} |"


def _measured(result: AuditResult) -> str:
    run = result.provenance
    if run.reference is None:
        return "There were no real images to compare with.\n"
    return (
        f"{run.measured:,} of {run.committed:,} images were measured with {run.extractor}, k = {run.k}, against "
        f"{run.reference_count:,} real images ({run.reference}). The real baseline is the score of held-out real "
        "images, the same number per class.\n"
    )


def _copies(result: AuditResult) -> list[str]:
    searched = result.memorization
    if searched is None:
        return []
    part = "" if searched.whole else ", which is not the model's whole training set"
    return [f"Copies were searched for among {searched.count:,} images: {searched.source}{part}.\n"]


def _exceptions(result: AuditResult) -> list[str]:
    lines = []
    if result.partial:
        lines.append("The audit is incomplete: these numbers describe only a part of the data set.\n")
    if result.provenance.not_accepted:
        lines.append(
            f"{result.provenance.not_accepted:,} images did not pass the manifest's `[accept]` and were kept.\n"
        )
    return lines
