"""Metrics of whole sets: closed forms, and what each must say of sets that are equal, narrow or shifted."""

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.audit.fidelity import frechet_distance, kernel_distance
from pipeline.audit.metrics import compare_features, tail_members
from pipeline.audit.neighbors import build_manifold

Floats = NDArray[np.float32]


def gaussian(rows: int, seed: int, mean: float = 0.0, scale: float = 1.0) -> Floats:
    generator = np.random.default_rng(seed)
    return (generator.normal(size=(rows, 4)) * scale + mean).astype(np.float32)


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
    mean, std = kernel_distance(first.astype(np.float32), second.astype(np.float32))
    assert mean == pytest.approx(own - 2 * kernel(first, second).mean(), rel=1e-5)
    assert std == pytest.approx(0.0, abs=1e-9)


def test_equal_distributions_score_like_real_ones() -> None:
    found = compare_features(gaussian(800, 0), gaussian(800, 1))
    assert set(found) == {
        "fid_efficientnet_lite0", "kid_efficientnet_lite0", "precision", "recall", "tail_recall", "density", "coverage",
        "rarity",
    }  # fmt: skip
    assert found["density"] == pytest.approx(1.0, abs=0.1)
    assert found["coverage"] > 0.85
    assert found["fid_efficientnet_lite0"] < 0.1


def test_a_narrow_set_is_precise_and_misses_the_tail() -> None:
    real = gaussian(800, 1)
    wide, narrow = compare_features(gaussian(800, 0), real), compare_features(gaussian(800, 2, scale=0.3), real)
    assert narrow["precision"] >= wide["precision"]
    assert narrow["recall"] < 0.5 * wide["recall"]
    assert narrow["tail_recall"] < 0.1 < wide["tail_recall"]
    assert narrow["rarity"] < wide["rarity"]


def test_a_set_far_away_scores_zero_everywhere() -> None:
    found = compare_features(gaussian(60, 0, mean=100.0), gaussian(60, 1), extractor="inception-v3")
    zeros = ("precision", "recall", "tail_recall", "density", "coverage", "rarity")
    assert [found[name] for name in zeros] == [0.0] * 6
    assert found["fid_inception_v3"] > 10_000


def test_the_tail_is_the_sparsest_fifth() -> None:
    dense, sparse = np.linspace(0, 1, 80), 10.0 + 5.0 * np.arange(20)
    members = tail_members(build_manifold(np.concatenate([dense, sparse]).astype(np.float32)[:, None], 2))
    assert np.flatnonzero(members).tolist() == list(range(80, 100))
