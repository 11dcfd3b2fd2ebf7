"""Intervals and replicates against closed forms, a peer library, and what fresh draws give."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest, t

from rarefy.audit.metrics import distances
from rarefy.audit.metrics.baseline import summarize
from rarefy.audit.metrics.blocks import assign_blocks, block_contrasts, block_number, rounds
from rarefy.audit.metrics.bootstrap import (
    REPLICATES,
    Estimate,
    around,
    centred,
    estimate_mean,
    finite_means,
    fraction_interval,
    from_contrasts,
    wilson_interval,
)
from rarefy.audit.metrics.draws import draw_values
from rarefy.audit.metrics.neighbors import Labelled, build_manifold
from rarefy.audit.metrics.spread import _doubly_centred, frechet_estimate, kernel_estimate, kernel_variance

Floats = NDArray[np.float64]


def spread(estimate: Estimate) -> float:
    assert estimate.replicates is not None
    assert len(estimate.replicates) == REPLICATES
    return float(estimate.replicates.std())


@pytest.mark.parametrize(("hits", "count"), [(30, 100), (0, 10), (10, 10), (3, 7), (600, 600)])
def test_a_fraction_has_wilsons_interval(hits: int, count: int) -> None:
    fraction, interval = fraction_interval(np.arange(count) < hits)
    expected = binomtest(hits, count).proportion_ci(method="wilson")
    assert fraction == hits / count
    assert interval == pytest.approx([expected.low, expected.high])
    assert interval is not None and interval[1] - interval[0] > 0
    assert fraction_interval(np.zeros(0, np.bool_)) == (None, None)


def test_a_fraction_is_resampled_within_its_classes() -> None:
    labels = np.repeat([0, 1], 1000)
    hits = np.where(labels == 0, np.arange(2000) % 10 > 0, np.arange(2000) % 10 == 0)  # 0.9 and 0.1: half of all
    found, plain = estimate_mean(hits, "rows", labels), estimate_mean(hits, "rows")
    assert found.value == plain.value == 0.5
    assert spread(found) == pytest.approx(np.sqrt(0.09 / 2000), rel=0.15)  # between the classes nothing varies
    assert spread(plain) == pytest.approx(np.sqrt(0.25 / 2000), rel=0.15)
    low, high = found.interval or (0.0, 0.0)
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.09 / 2000), rel=0.15)


def test_a_fraction_of_none_or_all_has_an_interval() -> None:
    assert estimate_mean(np.ones(600, np.bool_), "rows").interval == pytest.approx(wilson_interval(1.0, 600))
    assert estimate_mean(np.zeros(600, np.bool_), "rows").interval == pytest.approx([0, 3.84 / 603.84], abs=1e-4)
    for rows in range(1, 2000):  # despite rounding
        assert wilson_interval(1.0, rows)[1] == 1.0
        assert wilson_interval(0.0, rows)[0] == 0.0
    assert Estimate(3.0).interval is None


def test_rows_without_a_value_take_no_part() -> None:
    columns = {"some": np.array([1.0, np.nan, 3.0, np.nan]), "all": np.arange(4.0), "none": np.full(4, np.nan)}
    assert finite_means(columns) == {"some": 2.0, "all": 1.5, "none": 0.0}


def test_two_sides_add_their_variances() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=1000), generator.normal(size=500) * 2
    found = around(7.0, (centred(first, None), centred(second, None)), "both")
    expected = np.sqrt(first.var() / 1000 + second.var() / 500)
    assert spread(found) == pytest.approx(expected, rel=0.2)
    assert spread(around(7.0, (centred(first, None), centred(second, None)), "both", 0.5)) == pytest.approx(
        spread(found) / 2
    )


def test_replicates_of_contrasts_have_their_mean_square_and_share_their_numbers() -> None:
    contrasts = np.random.default_rng(0).normal(size=24)
    found = from_contrasts(5.0, contrasts, "both")
    deviation = float(np.sqrt((contrasts**2).mean()))
    assert spread(found) == pytest.approx(deviation)
    assert found.interval == pytest.approx([5 - t.ppf(0.975, 24) * deviation, 5 + t.ppf(0.975, 24) * deviation])
    opposite = from_contrasts(5.0, -contrasts, "both")
    assert found.replicates is not None and opposite.replicates is not None
    np.testing.assert_allclose(found.replicates + opposite.replicates, 10.0)


def test_blocks_are_disjoint_and_have_their_part_of_each_class() -> None:
    labels = np.repeat([3, 5, 9], [41, 80, 2])
    places = assign_blocks(labels, 4, np.random.default_rng(0))
    for each in (3, 5, 9):
        counts = np.bincount(places[labels == each], minlength=4)
        assert counts.max() - counts.min() <= 1
    assert [block_number(*sizes) for sizes in ((1000, 10_000), (600, 10_000), (600, 900), (60, 60))] == [8, 4, 2, 2]


def test_contrasts_of_a_mean_have_the_variance_within_classes() -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], 500), np.repeat([0, 1], 1000)
    values = [generator.normal(size=len(side)) + 10 * side for side in labels]

    def evaluate(rows: NDArray[np.int64], real_rows: NDArray[np.int64]) -> Floats:
        return np.array([values[0][rows].mean() + values[1][real_rows].mean()])

    ticks = list[int]()
    found = block_contrasts(labels, evaluate, 5, tick=lambda: ticks.append(1))
    assert found is not None
    assert len(ticks) == rounds(1000, 2000) == 4
    contrasts, means = found
    assert means == pytest.approx(evaluate(*map(np.arange, (1000, 2000))), abs=1e-3)
    assert np.sqrt((contrasts**2).mean()) == pytest.approx(np.sqrt(1 / 1000 + 1 / 2000), rel=0.35)
    assert block_contrasts((labels[0][:8], labels[1]), evaluate, 5) is None


@pytest.mark.parametrize("columns", [10, 120])
def test_spreads_of_fid_and_kid_are_those_of_fresh_draws(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two classes far apart: what varies is within them. 120 columns are more than there are rows."""
    monkeypatch.setattr(distances, "KID_SUBSETS", 1)
    generator, labels = np.random.default_rng(0), (np.repeat([0, 1], 50), np.repeat([0, 1], 100))
    values, spreads = [], []
    for draw in range(40):
        features = [
            (generator.normal(size=(len(side), columns)) + 2 * side[:, None]).astype(np.float32) for side in labels
        ]
        features[0] *= 0.8
        whole = distances.frechet_distance(*features), float(distances.kernel_distances(*features)[0])
        values.append(whole)
        if draw < 5:
            both = (features[0], features[1])
            spreads.append(
                [
                    spread(frechet_estimate(whole[0], both, labels)),
                    spread(kernel_estimate(whole[1], 0.0, both, labels)),
                ]
            )
    ratios = np.sqrt((np.array(spreads) ** 2).mean(axis=0)) / np.std(values, axis=0)
    assert ratios == pytest.approx(1.0, abs=0.35)


def test_the_variance_of_the_kernel_distance_is_written_out() -> None:
    """Fresh draws of two sets whose means differ."""
    kernel = np.outer([1.0, 2.0, 6.0], [1.0, 5.0])
    labels = np.zeros(3, np.int64), np.zeros(2, np.int64)
    np.testing.assert_allclose(_doubly_centred(kernel, *labels), np.outer([-2, -1, 3], [-2, 2]))
    generator = np.random.default_rng(1)
    sets = [(generator.normal(size=(100, 3)) + 0.7, generator.normal(size=(150, 3))) for _ in range(150)]
    zeros = np.zeros(100, np.int64), np.zeros(150, np.int64)
    found = [kernel_variance(one.astype(np.float32), other.astype(np.float32), zeros) for one, other in sets[:30]]
    assert np.mean(found) == pytest.approx(np.var([_unbiased(*each) for each in sets]), rel=0.3)


def _unbiased(x: Floats, y: Floats) -> float:
    among, others, apart = ((a @ b.T / 3 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    own = sum((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (among, others))
    return float(own - 2 * apart.mean())


def test_the_baseline_is_the_mean_of_the_draws_with_a_prediction_interval() -> None:
    values = np.array([0.50, 0.52, 0.54, 0.56, 0.58, 0.60])
    found = summarize([Estimate(value) for value in values], True)
    half = t.ppf(0.975, 5) * values.std(ddof=1) * np.sqrt(7 / 6)
    assert (found.value, found.spread, found.draws) == (pytest.approx(0.55), pytest.approx(values.std(ddof=1)), 6)
    assert found.interval == pytest.approx([0.55 - half, 0.55 + half])
    at_the_end = summarize([Estimate(value) for value in (0.9, 0.97, 0.99, 1.0, 1.0)], True).interval or [0.0, 0.0]
    assert at_the_end[1] == 1.0


def test_few_draws_have_the_first_ones_interval() -> None:
    first = from_contrasts(0.5, np.full(30, 0.01), "both")
    found = summarize([first, Estimate(0.6)], False)
    assert found.value == pytest.approx(0.55)
    half = t.ppf(0.975, 30) * 0.01
    assert found.interval == pytest.approx([0.55 - half, 0.55 + half])
    assert summarize([Estimate(0.5)], True).interval is None
    alone = summarize([estimate_mean(np.arange(100) < 50, "rows")], True)
    assert (alone.spread, alone.draws) == (None, 1)


def test_a_labelled_part_searches_its_own_rows() -> None:
    features = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    whole, rows = Labelled(build_manifold(features, 3), np.arange(40) % 4), np.arange(0, 40, 2)
    part = whole.take(rows, "cpu")
    np.testing.assert_allclose(part.manifold.radius, build_manifold(features[rows], 3).radius)
    assert part.labels.tolist() == [0, 2] * 10


def test_draws_that_share_work_have_the_metrics_of_single_ones() -> None:
    """30 rows are fewer than 40 columns: FID and KID take the short way, which must lead to the same place."""
    generator = np.random.default_rng(0)
    real = build_manifold(generator.normal(size=(60, 40)).astype(np.float32), 3)
    draws = [build_manifold(generator.normal(size=(30, 40)).astype(np.float32) + 0.2, 3) for _ in range(2)]
    tail = np.arange(60) < 12
    alone = [next(draw_values([draw], real, tail)) for draw in draws]
    for found, expected in zip(draw_values(draws, real, tail), alone, strict=True):
        assert found.values == pytest.approx(expected.values, rel=1e-5)
        assert found.kid_std == pytest.approx(expected.kid_std, rel=1e-5)
