"""The rows of the class table in metrics.json."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rarefy.audit.features.scores import ReferenceScores
from rarefy.audit.inputs.dataset import RunData
from rarefy.audit.measure import Measured
from rarefy.audit.metrics.bootstrap import fraction_interval
from rarefy.audit.metrics.summary import mean, wasserstein_1
from rarefy.audit.schema import ClassRow

Labels = NDArray[np.int64]


def class_rows(
    run: RunData, scores: ReferenceScores | None, labels: Labels | None, measured: Measured | None
) -> list[ClassRow]:
    """One row per planned class. scores, labels: of the real images; measured: None without real images."""
    table = _planned_rows(run)
    if scores is not None and labels is not None:
        _add_scores(table, run, scores, labels)
    if measured is not None:
        _add_neighbors(table, measured)
        _add_diversity(table, measured)
    return table


def _planned_rows(run: RunData) -> list[ClassRow]:
    """One row per planned class, from the run's metadata; on-class rates are the judge's if there is one."""
    table, rows, manifest = [], run.rows, run.manifest
    for class_id, planned in sorted(manifest.counts.items()):
        own = rows.class_id == class_id
        drawn = int((rows.candidate[own] + 1).sum())
        scored = own if run.scored else own & False
        hits = rows.predicted_id[scored] == class_id
        if run.judged is not None:
            hits = run.judged[run.measured.class_id == class_id] == class_id
        rate, interval = fraction_interval(hits)
        table.append(
            ClassRow(
                class_id=class_id,
                class_name=manifest.preset.class_name(class_id),
                planned=planned,
                count=int(own.sum()),
                on_class_rate=rate,
                on_class_rate_interval=interval,
                confidence=mean(rows.confidence[scored]),
                entropy=mean(rows.entropy[scored]),
                acceptance_rate=int(rows.accepted[own].sum()) / drawn if manifest.accept and drawn else None,
            )
        )
    return table


def _add_scores(table: list[ClassRow], run: RunData, scores: ReferenceScores, labels: Labels) -> None:
    """Add each class's scores of the real images, and the distance of the generated images' scores from them."""
    for row in table:
        own, real = run.rows.class_id == row.class_id, labels == row.class_id
        chosen = scores.predicted_id if scores.judged_id is None else scores.judged_id
        row.reference_on_class_rate = mean(chosen[real] == row.class_id)
        row.reference_confidence = mean(scores.confidence[real])
        row.reference_entropy = mean(scores.entropy[real])
        row.confidence_w1 = wasserstein_1(run.rows.confidence[own], scores.confidence[real])
        row.entropy_w1 = wasserstein_1(run.rows.entropy[own], scores.entropy[real])


def _add_neighbors(table: list[ClassRow], measured: Measured) -> None:
    """Add what each class's neighbourhoods say, with the real baseline's values where it has them."""
    of_run, draws = measured.of_run.neighborhood, [draw.neighborhood for draw in measured.of_draws]
    # The same for the draws' own images: all of them, because each draw has few of a class.
    drawn = np.concatenate([side.labels for side in measured.sides.draws])
    balls, rarity = (np.concatenate([getattr(draw, name) for draw in draws]) for name in ("balls", "rarity"))
    for row in table:
        own, real = measured.run.measured.class_id == row.class_id, measured.real_images.labels == row.class_id
        tail = real & measured.tail.members
        row.copies = mean(measured.twins.copied[own])
        row.precision, row.precision_interval = fraction_interval(of_run.balls[own] > 0)
        row.precision_floor = mean(balls[drawn == row.class_id] > 0)
        row.rarity = mean(of_run.rarity[own & (of_run.balls > 0)])
        row.rarity_floor = mean(rarity[(drawn == row.class_id) & (balls > 0)])
        row.recall, row.recall_interval = fraction_interval(of_run.recalled[real])
        row.recall_floor = mean(np.array([draw.recalled[real] for draw in draws]))
        row.tail_recall, row.tail_recall_interval = fraction_interval(of_run.recalled[tail])
        row.tail_recall_floor = mean(np.array([draw.recalled[tail] for draw in draws]))
        row.coverage, row.coverage_interval = fraction_interval(of_run.covered[real])
        row.coverage_floor = mean(np.array([draw.covered[real] for draw in draws]))


def _add_diversity(table: list[ClassRow], measured: Measured) -> None:
    """Add each class's Vendi score with its baseline, and the accuracy that the class gains by the generated images."""
    draws, utility = [draw.class_vendi for draw in measured.of_draws], measured.utility
    for row in table:
        row.vendi = measured.of_run.class_vendi.get(row.class_id)
        row.vendi_floor = mean(np.array([scores[row.class_id] for scores in draws if row.class_id in scores]))
        if utility is not None:
            if (gain := utility.class_gains.get(row.class_id)) is not None:
                row.utility, row.utility_interval = gain.value, gain.interval
            row.utility_real = utility.class_accuracies.get(row.class_id)
