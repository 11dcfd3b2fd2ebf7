"""The rule for copies: on planted copies, and piece by piece against brute force."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from rarefy.audit.features.extractors import load_extractor
from rarefy.audit.gallery import Gallery, ImageSet, Look, kept_look, look, make_gallery
from rarefy.audit.memory import _Search
from rarefy.audit.metrics import pixels, ranking
from rarefy.audit.metrics.copies import (
    CAP,
    FEW_CAP,
    TRAINING,
    Closeness,
    Rule,
    Twin,
    calibrate,
    listed,
    real_spacing,
    same_pixels,
    spacing_ratios,
)
from rarefy.audit.metrics.pixels import ImageStack, PixelSearch
from rarefy.audit.metrics.ranking import nearest_rows, top_columns
from rarefy.images import LabelledImages

Images = NDArray[np.uint8]


def pictures(seed: int, count: int, channels: int = 1, side: int = 20) -> Images:
    """Random smooth pictures."""
    noise = np.random.default_rng(seed).normal(size=(count, channels, side, side))
    smooth = gaussian_filter(noise, (0, 0, 2, 2), mode="nearest")
    return np.clip(128 + 60 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def noisy(images: Images, levels: float, seed: int = 9) -> Images:
    noise = np.random.default_rng(seed).normal(0, levels, images.shape)
    return np.clip(np.round(images + noise), 0, 255).astype(np.uint8)


def moved(images: Images, dy: int, dx: int) -> Images:
    side, bordered = images.shape[-1], np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    return bordered[..., 1 + dy : 1 + dy + side, 1 + dx : 1 + dx + side]


def features_of(images: Images) -> NDArray[np.floating]:
    """Features without any invariance: a few random projections of the pixels."""
    weights = np.random.default_rng(3).normal(size=(images[0].size, 24))
    return (images.reshape(len(images), -1) @ weights / images[0].size).astype(np.float16)


def gallery_of(images: Images, kind: str = TRAINING) -> Gallery:
    labelled = LabelledImages(images, np.zeros(len(images), np.int64), ("a",))
    return make_gallery({kind: labelled}, [features_of(images)], "cpu")


def seen(images: Images, gallery: Gallery) -> Look:
    return look(ImageSet(images, features_of(images)), gallery, "cpu")


CHANGES = {
    "exact": lambda images: images,
    "noise of 3 levels": lambda images: noisy(images, 3),
    "noise of 8 levels": lambda images: noisy(images, 8),
    "one pixel up": lambda images: moved(images, 1, 0),
    "one pixel to the left and down": lambda images: moved(images, -1, 1),
    "flipped": lambda images: images[..., ::-1],
    "darkened": lambda images: (images * 0.9).astype(np.uint8),
    "flipped, darkened and noisy": lambda images: noisy((images[..., ::-1] * 0.9).astype(np.uint8), 3),
}


@pytest.mark.parametrize("channels", [1, 3])
def test_planted_copies_are_found_and_unseen_images_are_not(channels: int) -> None:
    real = pictures(0, 300, channels)
    repeated = [real[:20]] * 2 + [noisy(real[:20], 1, seed) for seed in range(3)]
    gallery, unseen = gallery_of(np.concatenate([real, *repeated])), pictures(1, 300, channels)
    assert len(gallery.rows) == 360  # equal pictures are one
    rule = calibrate(seen(unseen[:150], gallery).closeness)
    assert (rule.ratio(seen(unseen[150:], gallery).closeness) < 1).mean() <= 0.02
    for name, change in CHANGES.items():
        found = seen(np.ascontiguousarray(change(real[:60])), gallery)
        copied = rule.ratio(found.closeness) < 1
        assert copied.mean() >= 0.95, name
        sources = gallery.rows[rule.other(found.closeness)]
        assert (np.where(sources < 300, sources, (sources - 300) % 20) == np.arange(60))[copied].all(), name


def least(image: Images, other: Images) -> float:
    """The distance of two pictures by brute force: every flip and shift, least squares with a limited gain."""
    weights = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16

    def blurred(picture: Images) -> NDArray[np.float64]:
        bordered = np.pad(picture.astype(float), ((0, 0), (1, 1), (1, 1)), mode="edge")
        side = picture.shape[-1]
        return sum(weights[y, x] * bordered[:, y : y + side, x : x + side] for y in range(3) for x in range(3))

    fits = []
    inner = blurred(other)[:, 1:-1, 1:-1]
    side = inner.shape[-1]
    for view in (blurred(image), blurred(image)[..., ::-1]):
        for y in range(3):
            for x in range(3):
                window = view[:, y : y + side, x : x + side]
                gain = np.clip(np.cov(window.ravel(), inner.ravel(), bias=True)[0, 1] / inner.var(), 0.8, 1.25)
                fits.append((window - gain * inner).std())
    return min(fits)


def test_the_distance_is_that_of_brute_force() -> None:
    first, second = pictures(0, 5, 3, 12), pictures(1, 6, 3, 12)
    places = np.arange(30).reshape(5, 6) % 6
    found = PixelSearch(ImageStack.of(second)).distances(first, places)
    expected = [[least(first[i], second[j]) for j in row] for i, row in enumerate(places)]
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_large_images_are_compared_at_a_smaller_size() -> None:
    real = np.repeat(np.repeat(pictures(0, 50), 4, -1), 4, -2)
    matches = PixelSearch(ImageStack.of(real)).nearest(noisy(real[:9], 20), 3)
    assert matches.index[:, 0].tolist() == list(range(9))
    assert (np.diff(matches.distance, axis=1) >= 0).all()


def test_an_image_is_not_its_own_match() -> None:
    real = pictures(0, 30)
    real[7] = noisy(real[3:4], 2)[0]
    matches = PixelSearch(ImageStack.of(real)).nearest(real, 40, np.arange(30))
    assert matches.index.shape == (30, 29)
    assert (matches.index[:, 0] != np.arange(30)).all()
    assert (matches.index[3, 0], matches.index[7, 0]) == (7, 3)


def test_a_stack_takes_images_from_its_parts() -> None:
    parts, rows = (pictures(0, 4), pictures(1, 3), pictures(2, 5)), np.array([11, 0, 4, 6, 3])
    stack = ImageStack(parts, rows)
    assert len(stack) == 5
    np.testing.assert_array_equal(stack.take(np.array([4, 0, 2])), np.concatenate(parts)[[3, 11, 4]])


def test_search_in_blocks_equals_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    rows, others = generator.normal(size=(13, 4)).astype(np.float32), generator.normal(size=(37, 4)).astype(np.float16)
    rows[2], itself = others[5], np.full(13, -1)
    itself[2] = 5
    gaps = np.linalg.norm(rows[:, None].astype(float) - others[None].astype(float), axis=2)
    gaps[2, 5] = np.inf
    expected = np.sort(gaps, axis=1)[:, :6]
    for block in (5, 100):
        monkeypatch.setattr(ranking, "ROWS", block)
        monkeypatch.setattr(ranking, "COLUMNS", block)
        monkeypatch.setattr(ranking, "EXACT_ROWS", 4)
        distance, place = nearest_rows(rows, others, 6, itself)
        np.testing.assert_allclose(distance, expected, rtol=1e-5)
        np.testing.assert_allclose(np.take_along_axis(gaps, place, 1), expected, rtol=1e-5)
    assert nearest_rows(rows, others, 99)[0].shape == (13, 37)
    steps = []
    top_columns(lambda a, b: ranking._floats(gaps[a, b], "cpu"), (13, 37), 2, step=lambda *done: steps.append(done))
    assert steps == [(13, 13)]


def test_thumbnails_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    real = pictures(0, 30)
    whole = PixelSearch(ImageStack.of(real)).nearest(noisy(real, 5), 4)
    monkeypatch.setattr(pixels, "THUMBNAIL_ROWS", 7)
    monkeypatch.setattr(pixels, "PAIR_ROWS", 4)
    parts = PixelSearch(ImageStack.of(real)).nearest(noisy(real, 5), 4)
    np.testing.assert_allclose(parts.distance, whole.distance, rtol=1e-4)
    np.testing.assert_array_equal(parts.index, whole.index)


def test_neighbours_that_repeat_a_picture_set_no_scale() -> None:
    distance = np.array([[1.0] * 8 + [20.0] * 9, [10.0] * 17])
    assert real_spacing(distance).tolist() == [20, 10]
    assert spacing_ratios(distance).tolist() == [0.05, 1]
    assert spacing_ratios(distance, np.array([2.0, 0])).tolist() == [0.5, np.inf]
    assert spacing_ratios(np.array([[0.0, 0.0], [1.0, 4.0]])).tolist() == [0, 0.25]
    assert spacing_ratios(np.empty((2, 0))).tolist() == [np.inf, np.inf]


def test_the_limit_lets_few_real_images_pass() -> None:
    index, ratios = np.zeros(1000, np.int64), np.linspace(0.3, 1.3, 1000)
    rule = calibrate(Closeness(ratios, ratios + 1, index, index))
    assert (ratios < rule.pixel).sum() == 2
    assert rule.feature == CAP  # far from the others, and still no copy
    equal = np.concatenate([np.zeros(500), ratios[:500]])
    assert (calibrate(Closeness(equal, equal, index, index)).pixel == ratios).argmax() == 1
    few = ratios[:100] / 2
    assert calibrate(Closeness(few, few + 1, index, index)) == Rule(few[0], FEW_CAP)
    none = np.zeros(0)
    assert calibrate(Closeness(none, none, none, none)) == Rule(FEW_CAP, FEW_CAP)


def test_either_distance_can_tell_a_copy() -> None:
    rule = Rule(pixel=0.4, feature=0.5)
    closeness = Closeness(np.array([0.2, 0.8, 0.8]), np.array([1, 0.1, 0.6]), np.arange(3), np.arange(3) + 10)
    assert rule.ratio(closeness) == pytest.approx([0.5, 0.2, 1.2])
    assert rule.other(closeness).tolist() == [0, 11, 12]


def test_equal_pixels_are_found_even_without_contrast() -> None:
    """Pictures of one colour all have the same thumbnail, so the search cannot tell them apart."""
    flat = np.repeat(np.arange(60, dtype=np.uint8), 64).reshape(60, 1, 8, 8)
    found = seen(flat[40:42], gallery_of(flat))
    assert found.pixel.tolist() == [0, 0]
    assert found.pixel_index.tolist() == [40, 41]


def test_copies_are_resampled_within_the_classes() -> None:
    """All of one class are copies and none of the other, so draws with so many per class never differ."""
    trained = pictures(0, 40)
    images = np.concatenate([trained[:20], pictures(1, 20)])
    gallery, own = gallery_of(trained), ImageSet(images, features_of(images))
    search = _Search(gallery, [TRAINING], Rule(0.1, 0.1), "cpu")
    _, found = search.measure(own, np.repeat([0, 1], 20), seen(images, gallery), features_of(pictures(2, 30)))
    copied = found["copies"]
    assert copied.value == 0.5
    assert copied.replicates is not None and np.ptp(copied.replicates) == 0


def test_a_kept_look_is_the_look() -> None:
    gallery, extractor = gallery_of(pictures(0, 40)), load_extractor()
    images = ImageSet(pictures(1, 6), features_of(pictures(1, 6)))
    first = kept_look(images, gallery, "a", extractor, "cpu")
    stored = kept_look(images, gallery, "a", extractor, "cpu", lambda *_: pytest.fail("searched again"))
    for name, column in vars(first).items():
        np.testing.assert_array_equal(getattr(stored, name), column)


def test_equal_images_are_paired() -> None:
    images = pictures(0, 6)
    images[4] = images[1]
    assert same_pixels(images) == {1: 4, 4: 1}


def test_the_list_is_short_and_every_kind_has_its_turn() -> None:
    many = [Twin(row, "training", row, 0.1, 0.1) for row in range(40)]
    held = [Twin(row, "held-out", row, 0.2, 0.2) for row in range(2)]
    near = [Twin(50, "near", 51, 0.3, 0.3), Twin(51, "near", 50, 0.3, 0.3)]
    shown = listed([many, [], near, held])
    assert len(shown) == 24
    assert sum(twin.kind == "held-out" for twin in shown) == 2
    assert [twin.row for twin in shown if twin.kind == "near"] == [50]
