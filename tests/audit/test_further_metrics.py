"""Clipped density and coverage, Vendi score, CMMD and FD infinity against closed forms and their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import betabinom

from rarefy.audit.metrics import vendi
from rarefy.audit.metrics.clipped import clipped_coverage, clipped_density, expected_coverage
from rarefy.audit.metrics.cmmd import cmmd, kernel_set
from rarefy.audit.metrics.distances import frechet_distance
from rarefy.audit.metrics.extrapolation import enough_rows, fd_infinity, real_gaussians
from rarefy.audit.metrics.neighbors import build_manifold, find_neighbors
from rarefy.audit.metrics.spread import infinity_estimate

Floats = NDArray[np.float32]


def gaussian(rows: int, seed: int, dim: int = 4, scale: float = 1.0) -> Floats:
    return (scale * np.random.default_rng(seed).normal(size=(rows, dim))).astype(np.float32)


def clipped(generated: Floats, real: Floats, k: int) -> tuple[float, float]:
    manifold = build_manifold(real, k)
    neighborhood = find_neighbors(build_manifold(generated, k), manifold)
    return clipped_density(neighborhood, manifold), clipped_coverage(neighborhood, manifold)


def clipped_by_definition(generated: Floats, real: Floats, k: int) -> tuple[float, float]:
    """Written out with all distances, from the paper."""
    own = np.linalg.norm(real[:, None].astype(float) - real[None], axis=2)
    radius = np.sort(own, axis=1)[:, k]
    small = np.minimum(radius, np.median(radius))
    cross = np.linalg.norm(generated[:, None].astype(float) - real[None], axis=2)
    others = (own <= small + 1e-9) & ~np.eye(len(real), dtype=bool)
    density = np.minimum((cross <= small).sum(axis=1) / k, 1).mean() / np.minimum(others.sum(axis=1) / k, 1).mean()
    reached = np.minimum((cross <= radius).sum(axis=0) / k, 1).mean()
    n, m = len(real), len(generated)
    expected = [sum(min(j, k) / k * betabinom.pmf(j, good, k, n - k) for j in range(good + 1)) for good in range(m + 1)]
    return min(density, 1.0), float(np.interp(reached, expected, np.linspace(0, 1, m + 1)))


@pytest.mark.parametrize(("k", "scale"), [(1, 1.0), (3, 0.6), (5, 2.0)])
def test_clipped_metrics_are_their_definitions(k: int, scale: float) -> None:
    generated, real = gaussian(40, 0, scale=scale), gaussian(70, 1)
    np.testing.assert_allclose(clipped(generated, real, k), clipped_by_definition(generated, real, k), atol=1e-5)


@pytest.mark.parametrize("bad", [0.0, 0.3, 0.7])
def test_a_fraction_of_bad_images_lowers_both_clipped_metrics_by_that_fraction(bad: float) -> None:
    real, generated = gaussian(3000, 0), gaussian(1500, 1)
    generated[: round(bad * 1500)] += 100
    np.testing.assert_allclose(clipped(generated, real, 5), 1 - bad, atol=0.04)


def test_an_outlier_of_the_real_images_does_not_inflate_clipped_density() -> None:
    real, far = gaussian(500, 0), gaussian(500, 1) + 30
    real[0] += 60  # its ball reaches everything between the data and itself
    manifold = build_manifold(real, 3)
    hood = find_neighbors(build_manifold(far, 3), manifold)
    assert hood.precision == 1.0
    assert clipped_density(hood, manifold) == 0.0


def test_expected_coverage_of_one_neighbour_has_a_closed_form() -> None:
    # With k = 1 the ball of one of n points contains none of m others with probability (n - 1) / (n - 1 + m).
    np.testing.assert_allclose(expected_coverage(1, 10, 4), [1 - 9 / (9 + m) for m in range(5)])


def test_vendi_score_of_equal_and_of_orthogonal_rows() -> None:
    assert vendi.vendi_score(np.ones((7, 3), np.float32)) == pytest.approx(1)
    assert vendi.vendi_score(5 * np.eye(6, dtype=np.float32)) == pytest.approx(6)
    assert vendi.vendi_score(np.repeat(np.eye(3, dtype=np.float32), 20, axis=0)) == pytest.approx(3)


@pytest.mark.parametrize(("rows", "dim"), [(12, 30), (50, 8)])
def test_vendi_score_is_its_definition_and_influences_are_its_derivative(rows: int, dim: int) -> None:
    features = np.abs(gaussian(rows, 3, dim))
    unit = features.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)

    def score(weights: NDArray[np.float64]) -> float:
        root = np.sqrt(weights / weights.sum())
        values = np.linalg.eigvalsh(root[:, None] * (unit @ unit.T) * root)
        values = values[values > 1e-12]
        return float(np.exp(-(values * np.log(values)).sum()))

    even, (value, influences) = np.ones(rows), vendi._score(features)
    assert value == pytest.approx(score(even), rel=1e-6)
    for row in range(0, rows, 5):
        more = even.copy()
        more[row] += 1e-5
        assert influences[row] == pytest.approx((score(more) - value) * rows / 1e-5, rel=1e-3, abs=1e-4)


def test_a_collapsed_class_stands_out_in_its_own_score() -> None:
    features, labels = gaussian(200, 0, 20), np.repeat([0, 1], 100)
    features[labels == 1] = features[100] + 0.01 * features[labels == 1]
    found = vendi.measure_diversity(features, labels, "generated rows")
    scores, estimate = found.classes, found.mean
    assert scores[1] < 1.1 < 10 < scores[0]
    assert estimate.value == pytest.approx((scores[0] + scores[1]) / 2)
    assert estimate.interval is not None and estimate.interval[0] < estimate.value < estimate.interval[1]


def cmmd_by_definition(x: Floats, y: Floats) -> float:
    def kernel(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.exp(-((a[:, None] - b[None]) ** 2).sum(axis=2) / (2 * 10.0**2)))

    a, b = (side.astype(np.float64) / np.linalg.norm(side, axis=1, keepdims=True) for side in (x, y))
    n, m = len(a), len(b)
    own = (kernel(a, a).sum() - n) / (n * (n - 1)) + (kernel(b, b).sum() - m) / (m * (m - 1))
    return float(1000 * (own - 2 * kernel(a, b).mean()))


def labelled(features: Floats, labels: int = 1) -> tuple[Floats, NDArray[np.int64]]:
    return features, np.arange(len(features)) % labels


def test_cmmd_is_the_unbiased_estimator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rarefy.audit.metrics.cmmd.BLOCK", 16)
    x, y = gaussian(40, 0, 6) + 1, gaussian(70, 1, 6)
    sides = kernel_set(*labelled(x)), kernel_set(*labelled(y), keep=True)
    assert cmmd(*sides, "both sides").value == pytest.approx(cmmd_by_definition(x, y), rel=1e-4)
    again = kernel_set(*labelled(y), keep=True)
    np.testing.assert_array_equal(again.sums, sides[1].sums)


def test_cmmd_varies_as_its_interval_says() -> None:
    draws = [
        cmmd(kernel_set(*labelled(gaussian(60, seed, 6) + 1)), kernel_set(*labelled(gaussian(300, 500 + seed, 6))), "")
        for seed in range(60)
    ]
    deviations = [float(draw.replicates.std()) for draw in draws if draw.replicates is not None]
    assert np.mean(deviations) == pytest.approx(np.std([draw.value for draw in draws]), rel=0.25)


def test_fd_infinity_of_gaussians_is_the_closed_form() -> None:
    dim = 20
    real, generated = gaussian(4000, 0, dim), gaussian(1000, 1, dim, 1.5)
    generated[:, 0] += 1
    exact = 1 + dim * (1.5 - 1) ** 2
    assert fd_infinity(generated, real_gaussians(real)) == pytest.approx(exact, abs=0.4)  # twice its spread


def test_fd_infinity_does_not_depend_on_the_number_of_images() -> None:
    dim = 20
    for rows in (50, 200):
        pairs = [(gaussian(rows, seed, dim), gaussian(rows, 100 + seed, dim)) for seed in range(12)]
        extrapolated = np.mean([fd_infinity(x, real_gaussians(y)) for x, y in pairs])
        assert abs(extrapolated) < 0.15 * frechet_distance(*pairs[0])


def test_fd_infinity_varies_as_its_interval_says() -> None:
    assert enough_rows(40, 20) and not enough_rows(39, 20)
    labels, values, spreads = np.zeros(60, np.int64), [], []
    for seed in range(120):
        x, y = gaussian(60, seed, 12), gaussian(60, 500 + seed, 12)
        values.append(fd_infinity(x, real_gaussians(y)))
        if seed < 20:
            found = infinity_estimate(values[-1], (x, y), (labels, labels))
            assert found.value == values[-1] and found.replicates is not None
            spreads.append(found.replicates.std())
    assert np.sqrt(np.mean(np.square(spreads))) / np.std(values) == pytest.approx(1, abs=0.25)
