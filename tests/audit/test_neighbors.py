"""The k-NN pass against hand-placed points, brute force, torch-fidelity and prdc."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from prdc import compute_prdc

from rarefy.audit.metrics import search
from rarefy.audit.metrics.distances import precision_recall
from rarefy.audit.metrics.neighbors import build_manifold, find_neighbors
from rarefy.errors import DataError

Floats = NDArray[np.float32]


def column(*values: float) -> Floats:
    return np.array(values, np.float32)[:, None]


def random_sets(shift: float = 0.6) -> tuple[Floats, Floats]:
    generator = np.random.default_rng(3)
    generated = generator.normal(size=(120, 6)) * 0.8 + shift
    return generated.astype(np.float32), generator.normal(size=(150, 6)).astype(np.float32)


def test_manifold_by_hand() -> None:
    manifold = build_manifold(column(0, 1, 3, 7), k=2)
    assert manifold.radius == pytest.approx([3, 2, 3, 6])
    assert manifold.mean_distance == pytest.approx([2, 1.5, 2.5, 5])


def test_a_duplicate_is_a_neighbour_and_the_row_itself_is_not() -> None:
    assert build_manifold(column(5, 5, 9), k=1).radius == pytest.approx([0, 0, 4])


def test_the_nearest_rows_are_listed_by_distance() -> None:
    manifold = build_manifold(column(0, 1, 3, 7), k=2)
    assert manifold.near.tolist() == [[1, 3], [1, 2], [2, 3], [4, 6]]
    assert manifold.near_index.tolist() == [[1, 2], [0, 2], [1, 0], [2, 1]]


def test_large_balls_are_clipped_at_the_median_radius() -> None:
    # Radii 1, 1, 3, 47 (k=1), median 2: only the balls of 4 and 51 shrink, to [2, 6] and [49, 53].
    real = build_manifold(column(0, 1, 4, 51), k=1)
    hood = find_neighbors(build_manifold(column(1.5, 5, 30), k=1), real)
    assert hood.balls.tolist() == [2, 2, 1]
    assert hood.inside.tolist() == [0, 1, 2, 2]
    assert hood.clipped_balls.tolist() == [1, 1, 0]
    assert hood.clipped_inside.tolist() == [0, 1, 1, 0]


def test_neighborhood_by_hand() -> None:
    # Real balls (k=1): [-1,1] of 0, [0,2] of 1, [2,6] of 4 (radius 3 -> [1,7]); generated at 0.5, 6.5, 20.
    real = build_manifold(column(0, 1, 4), k=1)
    assert real.radius == pytest.approx([1, 1, 3])
    hood = find_neighbors(build_manifold(column(0.5, 6.5, 20), k=1), real)
    assert hood.balls.tolist() == [2, 1, 0]
    assert hood.rarity[:2] == pytest.approx([1, 3])
    assert math.isnan(hood.rarity[2])
    assert hood.nearest == pytest.approx([0.5, 2.5, 16])
    assert hood.precision == pytest.approx(2 / 3)
    assert hood.density(1) == pytest.approx(1)
    assert hood.coverage == 1
    # Generated balls: 0.5 +- 6, 6.5 +- 6, 20 +- 13.5: all real points lie in the first.
    assert hood.recalled.tolist() == [True, True, True]


def test_recall_and_coverage_miss_what_is_not_reached() -> None:
    real = build_manifold(column(0, 1, 50, 51), k=1)
    hood = find_neighbors(build_manifold(column(0.2, 0.9), k=1), real)
    assert hood.recalled.tolist() == [True, True, False, False]
    assert hood.covered.tolist() == [True, True, False, False]


@pytest.mark.parametrize("k", [1, 3, 5])
def test_agrees_with_brute_force(k: int) -> None:
    generated, real = random_sets()
    wide, base = generated.astype(np.float64), real.astype(np.float64)
    radius = own_radius(base, k)
    cross = np.linalg.norm(wide[:, None] - base[None], axis=2)
    held = cross <= radius
    rarity = np.where(held, radius, np.inf).min(axis=1)
    hood = find_neighbors(build_manifold(generated, k), build_manifold(real, k))
    assert hood.balls.tolist() == held.sum(axis=1).tolist()
    np.testing.assert_allclose(hood.rarity, np.where(np.isinf(rarity), np.nan, rarity), atol=1e-5)
    np.testing.assert_allclose(hood.mean_distance, np.sort(cross, axis=1)[:, :k].mean(axis=1), atol=1e-5)
    assert hood.inside.tolist() == held.sum(axis=0).tolist()
    clipped = cross <= np.minimum(radius, np.median(radius))
    assert hood.clipped_balls.tolist() == clipped.sum(axis=1).tolist()
    assert hood.clipped_inside.tolist() == clipped.sum(axis=0).tolist()
    assert hood.recalled.tolist() == (cross <= own_radius(wide, k)[:, None]).any(axis=0).tolist()


def own_radius(rows: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    distances = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    return np.asarray(np.sort(distances, axis=1)[:, k])


@pytest.mark.parametrize(("k", "shift"), [(3, 0.0), (3, 1.5), (5, 0.6)])
def test_agrees_with_prdc_and_torch_fidelity(k: int, shift: float) -> None:
    generated, real = random_sets(shift)
    hood = find_neighbors(build_manifold(generated, k), build_manifold(real, k))
    oracle = compute_prdc(real_features=real, fake_features=generated, nearest_k=k)
    ours = {"precision": hood.precision, "recall": hood.recall, "density": hood.density(k), "coverage": hood.coverage}
    assert ours == pytest.approx({name: float(value) for name, value in oracle.items()}, abs=1e-6)
    assert precision_recall(generated, real, k) == pytest.approx((hood.precision, hood.recall), abs=1e-6)


def test_block_size_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generated, real = random_sets()
    whole = find_neighbors(build_manifold(generated, 3), build_manifold(real, 3))
    monkeypatch.setattr(search, "TILE_ROWS", 7)
    parts = find_neighbors(build_manifold(generated, 3), build_manifold(real, 3))
    for name in ("balls", "inside", "clipped_balls", "clipped_inside", "recalled"):
        assert getattr(parts, name).tolist() == getattr(whole, name).tolist()
    np.testing.assert_allclose(parts.rarity, whole.rarity, atol=1e-5)


@pytest.mark.parametrize("k", [0, 3, -1])
def test_k_must_leave_a_neighbour(k: int) -> None:
    with pytest.raises(DataError, match=f"k: {k} is not between 1 and 2"):
        build_manifold(column(1, 2, 3), k)
