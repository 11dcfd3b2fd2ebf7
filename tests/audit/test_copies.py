"""Copies and duplicates on points placed by hand."""

import numpy as np
import pytest
from numpy.typing import NDArray

from rarefy.audit.metrics.copies import Twin, find_copies, find_duplicates, listed, repeated
from rarefy.audit.metrics.neighbors import build_manifold, find_neighbors


def line(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32)[:, None]


def test_a_copy_is_far_nearer_than_real_images_are_to_each_other() -> None:
    # Real images lie 3 apart: 3.2 is within a third of that, 7.5 is not; 12 is one of them.
    real = build_manifold(line(0, 3, 6, 9, 12), 2)
    hood = find_neighbors(build_manifold(line(3.2, 7.5, 12), 1), real)
    copied, found = find_copies(hood, real, "reference")
    assert copied.tolist() == [True, False, True]
    assert [(twin.row, twin.other) for twin in found] == [(2, 4), (0, 1)]
    assert found[1].ratio == pytest.approx(0.2 / 3, rel=1e-4)
    assert found[0].distance == found[0].ratio == 0


def test_real_images_repeat_each_other_by_the_same_rule() -> None:
    # 3.2 and 3 are 0.2 apart; the next nearest is 3 away, so the spacing of both is about 1.6.
    assert repeated(build_manifold(line(0, 3, 3.2, 6, 9), 2)).tolist() == [False, True, True, False, False]


def test_real_images_that_coincide_are_no_scale() -> None:
    real = build_manifold(line(5, 5, 5, 40), 2)
    hood = find_neighbors(build_manifold(line(5, 6), 1), real)
    copied, found = find_copies(hood, real, "reference")
    assert copied.tolist() == [True, False]
    assert [twin.ratio for twin in found] == [0]


def test_duplicates_are_exact_or_near_and_listed_once() -> None:
    real = build_manifold(line(0, 10, 20, 30), 2)
    points = line(1, 1, 14, 14.5, 27)
    images = np.array([7, 7, 3, 4, 5], np.uint8).reshape(5, 1, 1, 1)
    own = build_manifold(points, 1)
    doubled, found = find_duplicates(images, own, find_neighbors(own, real), real)
    assert doubled.tolist() == [True, True, True, True, False]
    assert [(twin.row, twin.other, twin.kind) for twin in found] == [
        (0, 1, "exact"),
        (1, 0, "exact"),
        (2, 3, "near"),
        (3, 2, "near"),
    ]
    assert [(twin.row, twin.kind) for twin in listed([found])] == [(0, "exact"), (2, "near")]


def test_the_list_is_short_and_every_kind_has_its_turn() -> None:
    many = [Twin(row, "reference", row, 0.1, 0.1) for row in range(40)]
    held = [Twin(row, "held-out", row, 0.2, 0.2) for row in range(2)]
    near = [Twin(50, "near", 51, 0.3, 0.3)]
    shown = listed([many, [], near, held])
    assert len(shown) == 24
    assert sum(twin.kind == "held-out" for twin in shown) == 2
    assert near[0] in shown
