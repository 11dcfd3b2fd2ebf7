"""Metrics of whole sets: closed forms, and known outcomes for equal, narrow and shifted sets."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.neighbors import LocalOutlierFactor

from rarefy.audit.features.fidelity import load_module
from rarefy.audit.metrics import distances
from rarefy.audit.metrics.assembly import set_estimates, set_metrics
from rarefy.audit.metrics.distances import (
    frechet_distance,
    frechet_influences,
    inception_scores,
    kernel_distances,
    kernel_influences,
    local_outlier_factors,
)
from rarefy.audit.metrics.neighbors import Labelled, build_manifold
from rarefy.audit.metrics.tail import Tail, find_tail, tail_members
from rarefy.errors import DataError, ManifestError

Floats = NDArray[np.float32]


def gaussian(rows: int, seed: int, mean: float = 0.0, scale: float = 1.0) -> Floats:
    generator = np.random.default_rng(seed)
    return (generator.normal(size=(rows, 4)) * scale + mean).astype(np.float32)


def sides(*rows: int) -> tuple[Labelled, Labelled]:
    """Generated and real Gaussian rows of two equal classes."""
    manifolds = [build_manifold(gaussian(count, seed), 3) for seed, count in enumerate(rows)]
    first, second = (Labelled(each, np.arange(len(each.features)) % 2) for each in manifolds)
    return first, second


def test_frechet_distance_of_gaussians_is_the_closed_form() -> None:
    # |m1 - m2|^2 + sum (s1 - s2)^2 = 4 * 1.5^2 + 4 * (2 - 1)^2 = 13
    assert frechet_distance(gaussian(40_000, 0, 1.5, 2.0), gaussian(40_000, 1)) == pytest.approx(13.0, rel=0.02)


def test_frechet_distance_of_a_set_to_itself_is_zero() -> None:
    assert frechet_distance(gaussian(300, 0), gaussian(300, 0)) == pytest.approx(0.0, abs=1e-5)


def test_kernel_distance_matches_the_estimator_written_out() -> None:
    first, second = gaussian(40, 0, 0.7).astype(np.float64), gaussian(40, 1).astype(np.float64)

    def kernel(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray((a @ b.T / a.shape[1] + 1) ** 3)

    own = sum((kernel(x, x).sum() - np.trace(kernel(x, x))) / (40 * 39) for x in (first, second))
    # 40 rows are less than a subset, so every subset is the whole set and there is no spread
    found = kernel_distances(first.astype(np.float32), second.astype(np.float32))
    assert found.mean() == pytest.approx(own - 2 * kernel(first, second).mean(), rel=1e-5)
    assert found.std() == pytest.approx(0.0, abs=1e-9)


def test_equal_distributions_score_like_real_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "KID_SUBSETS", 2)
    found = set_estimates(*sides(400, 400), Tail("keys", np.arange(400) < 80)).values
    assert list(found) == [
        "fid", "kid", "precision", "recall", "tail_recall", "density", "coverage", "tail_coverage",
        "clipped_density", "clipped_coverage", "rarity", "outside", "avg_knn", "nearest", "lof",
    ]  # fmt: skip
    assert found["outside"] == pytest.approx(1 - found["precision"])
    assert found["lof"] == pytest.approx(1.05, abs=0.15)
    assert found["density"] == pytest.approx(1.0, abs=0.1)
    assert found["coverage"] > 0.85
    assert found["fid"] < 0.1


def test_a_narrow_set_is_precise_and_misses_the_tail() -> None:
    real = build_manifold(gaussian(800, 1), 3)
    wide, narrow = set_metrics(gaussian(800, 0), real), set_metrics(gaussian(800, 2, scale=0.3), real)
    assert narrow.precision >= wide.precision
    assert narrow.recall < 0.5 * wide.recall
    assert narrow.tail_recall < 0.1 < wide.tail_recall
    assert narrow.rarity < wide.rarity


def test_a_set_far_away_scores_zero_everywhere() -> None:
    found = set_metrics(gaussian(60, 0, mean=100.0), build_manifold(gaussian(60, 1), 3))
    zeros = ("precision", "recall", "tail_recall", "density", "coverage", "tail_coverage", "rarity")
    assert [getattr(found, name) for name in zeros] == [0.0] * 7
    assert found.outside == 1
    assert found.nearest == pytest.approx(200, abs=10)  # four axes, 100 each
    assert found.fid > 10_000


def test_distances_vary_as_those_of_fresh_draws_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a line, half as many rows are twice as far apart, and so are the deviations of their mean distance."""
    monkeypatch.setattr(distances, "KID_SUBSETS", 1)
    labels, values, spreads = np.zeros(100, np.int64), [], []
    for seed in range(60):
        features = [np.random.default_rng([seed, side]).random((100, 1), np.float32) for side in range(2)]
        real = build_manifold(features[1], 3)
        values.append(set_metrics(features[0], real).nearest)
        if seed < 5:
            sides = Labelled(build_manifold(features[0], 3), labels), Labelled(real, labels)
            found = set_estimates(*sides, Tail("keys", np.arange(100) < 20)).estimates["nearest"]
            assert found.replicates is not None
            spreads.append(found.replicates.std())
    assert np.mean(spreads) / np.std(values) == pytest.approx(1, abs=0.35)


def test_the_tail_is_the_sparsest_fifth() -> None:
    dense, sparse = np.linspace(0, 1, 80), 10.0 + 5.0 * np.arange(20)
    members = tail_members(build_manifold(np.concatenate([dense, sparse]).astype(np.float32)[:, None], 2))
    assert np.flatnonzero(members).tolist() == list(range(80, 100))


def test_the_tail_is_a_fifth_of_each_class() -> None:
    # Class 0 is dense, class 1 is sparse and class 2 has two rows: a fifth of all rows would be class 1 alone.
    places = np.concatenate(
        [np.cumsum(np.linspace(1, 2, 20)), 1000 + 50 * np.cumsum(np.linspace(1, 2, 10)), [-90, -50]]
    )
    labels, real = np.repeat([0, 1, 2], [20, 10, 2]), build_manifold(places.astype(np.float32)[:, None], 2)
    members = tail_members(real, labels)
    assert np.flatnonzero(members).tolist() == [16, 17, 18, 19, 28, 29, 30]
    confidence = np.linspace(0, 1, 32)
    by_confidence = find_tail("confidence", Labelled(real, labels), confidence, [str(row) for row in range(32)])
    assert np.flatnonzero(by_confidence.members).tolist() == [0, 1, 2, 3, 20, 21, 30]
    assert members.sum() == by_confidence.members.sum() == 4 + 2 + 1


def test_the_tails_own_metrics_average_over_its_rows_alone() -> None:
    # The generated rows reach the real row 0 alone and lie in the balls of 0 and 1; the tail is elsewhere.
    real, tail = build_manifold(np.array([0, 1, 50, 51], np.float32)[:, None], 1), np.array([False, False, True, True])
    found = set_metrics(np.array([-0.1, 0.1], np.float32)[:, None], real, tail)
    assert (found.recall, found.tail_recall, found.coverage, found.tail_coverage) == (0.25, 0.0, 0.5, 0.0)
    found = set_metrics(np.array([-0.1, 0.1], np.float32)[:, None], real, ~tail)
    assert (found.tail_recall, found.tail_coverage) == (0.5, 1.0)


def test_tails_by_confidence_and_by_list(tmp_path: Path) -> None:
    real = Labelled(build_manifold(gaussian(20, 0), 2), np.zeros(20, np.int64))
    confidence, keys = np.linspace(1, 0, 20), ([f"cat/{i} a.png" for i in range(20)], ["dog/7.png"])
    least = find_tail("confidence", real, confidence, *keys)
    assert (least.rule, np.flatnonzero(least.members).tolist()) == ("confidence", [16, 17, 18, 19])
    path = tmp_path / "tail.txt"
    path.write_text("cat/3 a.png\ndog/7.png\n\ncat/19 a.png\n")
    own = find_tail(str(path), real, None, *keys)
    assert np.flatnonzero(own.members).tolist() == [3, 19]
    assert own.rule == "keys"
    with pytest.raises(ManifestError, match="not possible here"):
        find_tail("confidence", real, None, *keys)
    with pytest.raises(ManifestError, match="one of avgknn, confidence or a readable file"):
        find_tail("densest", real, None, *keys)
    for content, told in (
        (
            "cat/3 a.png\ncat/20 a.png\n",
            r"tail .*: 'cat/20 a.png' is not .* such as 'cat/0 a.png' \(1 of 2 keys are unknown\)",
        ),
        ("dog/7.png\n", "a list with at least one of the 20 reference images"),
    ):
        path.write_text(content)
        with pytest.raises(DataError, match=told):
            find_tail(str(path), real, None, *keys)


def test_agrees_with_torch_fidelity_on_the_same_features(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = load_module("defaults").DEFAULTS
    assert (defaults["kid_subset_size"], defaults["rng_seed"]) == (distances.KID_SUBSET_SIZE, distances.SEED)
    monkeypatch.setattr(distances, "KID_SUBSETS", 8)
    monkeypatch.setattr(distances, "KID_SUBSET_SIZE", 300)
    first, second = gaussian(700, 0, 0.3), gaussian(600, 1)
    fid, kid = load_module("metric_fid"), load_module("metric_kid")
    wide = [torch.from_numpy(rows).double() for rows in (first, second)]
    statistics = [fid.fid_features_to_statistics(rows) for rows in wide]
    expected = fid.fid_statistics_to_metric(*statistics, verbose=False)[fid.KEY_METRIC_FID]
    assert frechet_distance(first, second) == pytest.approx(expected, abs=1e-5)
    options = {"kid_subsets": 8, "kid_subset_size": 300, "kid_kernel": "poly", "kid_kernel_poly_degree": 3}
    options |= {"kid_kernel_poly_gamma": None, "kid_kernel_poly_coef0": 1, "rng_seed": 2020, "verbose": False}
    found = kid.kid_features_to_metric(*wide, **options)
    names = (kid.KEY_METRIC_KID_MEAN, kid.KEY_METRIC_KID_STD)
    subsets = kernel_distances(first, second)
    assert (subsets.mean(), subsets.std()) == pytest.approx(tuple(found[name] for name in names), abs=1e-5)
    isc = load_module("metric_isc")
    score = isc.isc_features_to_metric(torch.from_numpy(first))
    splits = inception_scores(first)
    assert splits.mean() == pytest.approx(score[isc.KEY_METRIC_ISC_MEAN], abs=1e-5)
    assert splits.std() == pytest.approx(score[isc.KEY_METRIC_ISC_STD], abs=1e-5)


def test_fewer_rows_than_columns_keep_their_frechet_distance() -> None:
    generator = np.random.default_rng(5)
    first, second = (generator.normal(size=(9, 40)).astype(np.float32) for _ in range(2))
    means = [rows.mean(axis=0, dtype=np.float64) for rows in (first, second)]
    centred = [(rows - mean) / np.sqrt(8) for rows, mean in zip((first, second), means, strict=True)]
    # tr (C1 C2)^1/2 is the sum of the singular values of X1 X2'
    cross = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    expected = ((means[0] - means[1]) ** 2).sum() + sum((rows**2).sum() for rows in centred) - 2 * cross
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-5)
    assert [len(side) for side in frechet_influences(first, second)] == [9, 9]


def test_frechet_influences_are_the_derivative() -> None:
    first, second = gaussian(300, 0, 0.5, 1.4).astype(np.float64), gaussian(200, 1).astype(np.float64)
    influences = frechet_influences(first.astype(np.float32), second.astype(np.float32))

    def distance(weights: NDArray[np.float64]) -> float:
        mean = weights @ first
        cov = (first - mean).T * weights @ (first - mean) * 300 / 299
        root = np.linalg.eigvals(cov @ np.cov(second, rowvar=False))
        gap = mean - second.mean(axis=0)
        return float(gap @ gap + np.trace(cov) + np.trace(np.cov(second, rowvar=False)) - 2 * np.sqrt(root.real).sum())

    equal = np.full(300, 1 / 300)
    for row in (0, 7, 150):
        nearer = equal * (1 - 1e-5)
        nearer[row] += 1e-5
        slope = (distance(nearer) - distance(equal)) / 1e-5
        assert influences[0][row] == pytest.approx(slope, rel=0.02, abs=0.02)
    assert influences[1].mean() == pytest.approx(0, abs=1e-9)


def test_kernel_influences_are_what_is_lost_without_a_row() -> None:
    first, second = gaussian(60, 0, 0.7, 1.5).astype(np.float64), gaussian(50, 1).astype(np.float64)
    influences = kernel_influences(first.astype(np.float32), second.astype(np.float32))

    def distance(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
        among, others, apart = ((a @ b.T / 4 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
        own = sum((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (among, others))
        return float(own - 2 * apart.mean())

    whole = distance(first, second)
    for row in (0, 7, 41):
        lost = [distance(np.delete(first, row, axis=0), second), distance(first, np.delete(second, row, axis=0))]
        for side, rows in enumerate((60, 50)):
            expected = (influences[side].mean() - influences[side][row]) / (rows - 1)
            assert lost[side] - whole == pytest.approx(expected, rel=0.05, abs=1e-3)


def test_outlier_factors_are_scikit_learns_and_call_out_the_far() -> None:
    real = gaussian(300, 0)
    far = np.concatenate([gaussian(50, 1), gaussian(5, 2, mean=30.0)])
    factors = local_outlier_factors(far, real)
    expected = -LocalOutlierFactor(n_neighbors=20, novelty=True).fit(real).score_samples(far)
    np.testing.assert_allclose(factors, expected, rtol=1e-5)
    assert factors[50:].min() > 5 > factors[:50].max()
    assert len(local_outlier_factors(gaussian(2500, 3), gaussian(2100, 4))) == 2000
