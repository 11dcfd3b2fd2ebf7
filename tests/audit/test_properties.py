"""What must hold of any two sets of features, and agreement with scikit-learn's neighbours."""

from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from rarefy.audit.metrics import search
from rarefy.audit.metrics.neighbors import Neighborhood, build_manifold, find_neighbors
from rarefy.audit.metrics.search import point_set, tiles
from rarefy.errors import DataError

Floats = NDArray[np.float32]


def points(seed: int, rows: int, columns: int, spread: float = 1.0) -> Floats:
    return (np.random.default_rng(seed).normal(size=(rows, columns)) * spread).astype(np.float32)


def hood_of(generated: Floats, real: Floats, k: int = 3) -> Neighborhood:
    return find_neighbors(build_manifold(generated, k), build_manifold(real, k))


def summary(hood: Neighborhood) -> list[float]:
    return [hood.precision, hood.recall, hood.density(3), hood.coverage]


shapes = st.tuples(st.integers(0, 10_000), st.integers(8, 60), st.integers(1, 24))


@settings(max_examples=20, deadline=None)
@given(shapes, st.randoms(use_true_random=False))
def test_the_order_of_rows_means_nothing(shape: tuple[int, int, int], random: Random) -> None:
    seed, rows, columns = shape
    generated, real = points(seed, rows, columns), points(seed + 1, rows + 5, columns)
    order = list(range(rows))
    random.shuffle(order)
    first, second = hood_of(generated, real), hood_of(generated[order], real)
    assert summary(first) == summary(second)
    assert first.balls[order].tolist() == second.balls.tolist()
    np.testing.assert_array_equal(first.nearest[order], second.nearest)


@settings(max_examples=20, deadline=None)
@given(shapes)
def test_identical_sets_reach_each_other_wholly(shape: tuple[int, int, int]) -> None:
    rows = points(*shape)
    hood = hood_of(rows, rows.copy())
    assert (hood.precision, hood.recall, hood.coverage) == (1, 1, 1)
    assert hood.nearest.max() == 0


@settings(max_examples=20, deadline=None)
@given(shapes)
def test_far_sets_do_not_reach_each_other(shape: tuple[int, int, int]) -> None:
    seed, rows, columns = shape
    hood = hood_of(points(seed, rows, columns) + np.float32(1e4), points(seed + 1, rows, columns))
    assert summary(hood) == [0, 0, 0, 0]


@settings(max_examples=20, deadline=None)
@given(shapes)
def test_doubling_the_generated_set_moves_no_share_of_its_rows(shape: tuple[int, int, int]) -> None:
    seed, rows, columns = shape
    generated, real = points(seed, rows, columns), points(seed + 1, rows, columns)
    once, twice = hood_of(generated, real), hood_of(np.concatenate([generated, generated]), real)
    assert [once.precision, once.density(3), once.coverage] == [twice.precision, twice.density(3), twice.coverage]
    assert twice.recall <= once.recall  # its own balls shrink


@pytest.mark.parametrize("columns", [3, 40, 1280])
def test_neighbours_are_scikit_learns(columns: int) -> None:
    generated, real = points(0, 90, columns), points(1, 110, columns)
    search = NearestNeighbors(n_neighbors=4, algorithm="brute").fit(real.astype(np.float64))
    distances, places = search.kneighbors(real.astype(np.float64))
    manifold = build_manifold(real, 3)
    assert manifold.nearest_index.tolist() == places[:, 1].tolist()
    np.testing.assert_allclose(manifold.radius, distances[:, 3], rtol=1e-5)
    np.testing.assert_allclose(manifold.mean_distance, distances[:, 1:].mean(axis=1), rtol=1e-5)
    distances, places = search.kneighbors(generated.astype(np.float64), 3)
    hood = find_neighbors(build_manifold(generated, 3), manifold)
    assert hood.nearest_index.tolist() == places[:, 0].tolist()
    np.testing.assert_allclose(hood.mean_distance, distances.mean(axis=1), rtol=1e-5)


@pytest.mark.parametrize("tile", [1024, 30])
def test_the_rounding_never_shows(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters far from the origin and exact doubles against float64, in one tile and in many."""
    monkeypatch.setattr(search, "TILE_ROWS", tile)
    real = np.concatenate([points(0, 60, 16) + 500, points(1, 60, 16, 1e-3), points(2, 4, 16, 50)])
    real = np.concatenate([real, real[:10]]).astype(np.float32)
    generated = np.concatenate([points(3, 50, 16) + 500, points(4, 50, 16, 1e-3), real[:5]]).astype(np.float32)
    wide = [rows.astype(np.float64) for rows in (generated, real)]
    own = [np.linalg.norm(rows[:, None] - rows[None], axis=2) for rows in wide]
    for square in own:
        np.fill_diagonal(square, np.inf)
    radii = [np.sort(square, axis=1)[:, 2] for square in own]
    cross = np.linalg.norm(wide[0][:, None] - wide[1][None], axis=2)
    hood = hood_of(generated, real)
    assert hood.balls.tolist() == (cross <= radii[1]).sum(axis=1).tolist()
    assert hood.recalled.tolist() == (cross <= radii[0][:, None]).any(axis=0).tolist()
    assert hood.covered.tolist() == (cross <= radii[1]).any(axis=0).tolist()
    assert hood.inside.tolist() == (cross <= radii[1]).sum(axis=0).tolist()
    np.testing.assert_allclose(hood.nearest, cross.min(axis=1), rtol=1e-5, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(shapes, st.floats(0.01, 100))
def test_the_error_bound_holds(shape: tuple[int, int, int], spread: float) -> None:
    seed, rows, columns = shape
    real = torch.from_numpy(points(seed, rows, columns, spread))
    whole = point_set(real, real.mean(dim=0))
    (tile,) = tiles(whole, whole)
    exact = (real.double()[:, None] - real.double()[None]).square().sum(dim=2)
    assert (tile.lower <= exact).all()
    assert (tile.lower + tile.slack_rows[:, None] + tile.slack_columns >= exact).all()


def test_what_is_not_finite_or_of_another_length_is_named() -> None:
    rows = points(0, 20, 4)
    wrong = rows.copy()
    wrong[7, 2] = np.nan
    with pytest.raises(DataError, match="features: 'row 7' is not finite"):
        build_manifold(wrong, 3)
    with pytest.raises(DataError, match="features: 5 is not 4 long"):
        find_neighbors(build_manifold(points(0, 6, 5), 3), build_manifold(rows, 3))
