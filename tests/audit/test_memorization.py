"""The authenticity share and the C_T test against closed forms, brute force and scipy."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from rarefy.audit.metrics import memorization
from rarefy.audit.metrics.memorization import authentic, copying_test, nearest_distances


def test_authentic_images_are_farther_than_training_images_are_apart() -> None:
    # Training images at 0, 3 and 10: the nearest other of 0 is 3 away, of 10 it is 7 away. 2.9 below 3 is a copy of it,
    # 6.5 lies 3.5 from it and is authentic; 15 lies 5 from 10 and is not, 18 is.
    training = np.array([0.0, 3, 10])
    images = np.array([2.9, 6.4, 15, 18])
    gaps = np.abs(images[:, None] - training)
    nearest = gaps.argmin(axis=1)
    others = np.sort(np.abs(training[:, None] - training), axis=1)[:, 1]
    assert authentic(gaps.min(axis=1), others[nearest]).tolist() == [False, True, False, True]


def z_score(measured: np.ndarray, unseen: np.ndarray, training: np.ndarray) -> float:
    """Of scipy's U for the distances to the nearest training image."""
    sides = [np.linalg.norm(side[:, None] - training, axis=2).min(axis=1) for side in (measured, unseen)]
    m, n = len(measured), len(unseen)
    return float((mannwhitneyu(*sides).statistic - m * n / 2) / np.sqrt(m * n * (m + n + 1) / 12))


def test_one_cell_is_the_mann_whitney_test() -> None:
    generator = np.random.default_rng(0)
    measured, unseen, training = (generator.normal(size=(rows, 3)) for rows in (40, 70, 90))
    found = copying_test(measured, unseen, training)
    assert found is not None
    assert found.value == pytest.approx(z_score(measured, unseen, training), abs=1e-6)
    assert found.replicates is not None
    assert 0.6 < found.replicates.std() < 1.4  # a z score varies by about 1


def test_cells_are_weighted_by_the_unseen_images_and_small_ones_do_not_count() -> None:
    """Three clumps are three cells; the last has only 19 of the 199 measured images."""
    generator = np.random.default_rng(1)
    counts = (100, 80, 19), (60, 30, 50), (90, 90, 90)
    measured, unseen, training = (
        [generator.normal(size=(count, 2)) + 100 * place for place, count in enumerate(each)] for each in counts
    )
    found = copying_test(*(np.concatenate(side) for side in (measured, unseen, training)))
    scores = [z_score(*sides) for sides in zip(measured, unseen, training, strict=True)]
    assert found is not None
    assert found.value == pytest.approx(np.average(scores[:2], weights=[60, 30]), abs=0.01)  # in float32


def test_copies_are_far_below_zero_and_the_unseen_are_not() -> None:
    generator = np.random.default_rng(2)
    training, unseen, other = (generator.normal(size=(400, 8)) for _ in range(3))
    copies = training[:300] + 0.05 * generator.normal(size=(300, 8))
    found, real = copying_test(copies, unseen, training), copying_test(other[:300], unseen, training)
    assert found is not None
    assert real is not None
    assert found.value < -5
    assert abs(real.value) < 3


def test_no_cell_has_both_sides() -> None:
    assert copying_test(np.ones((5, 2)), np.ones((0, 2)), np.ones((9, 2))) is None


def test_nearest_distances_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(3)
    rows, others = generator.normal(size=(50, 5)), generator.normal(size=(30, 5))
    monkeypatch.setattr(memorization, "DISTANCES", 200)
    expected = np.linalg.norm(rows[:, None] - others, axis=2).min(axis=1)
    assert nearest_distances(rows, others) == pytest.approx(expected, rel=1e-5)
