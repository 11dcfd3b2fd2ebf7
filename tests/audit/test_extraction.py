"""Features shard by shard: order, cache and resumption, in this process and as Ray tasks."""

import math
from dataclasses import replace

import numpy as np
import pytest
from small_run import MANIFEST, quiet
from torch import Tensor, nn

from rarefy.audit.features import scores
from rarefy.audit.features.cache import cache_folder
from rarefy.audit.features.extraction import outputs_of_parts
from rarefy.audit.features.extractors import Extractor, check_finite
from rarefy.errors import DataError, DeviceError
from rarefy.generate.cluster import connected
from rarefy.generate.fit import Request
from rarefy.generate.score import Scores, score_images
from rarefy.images import LabelledImages
from rarefy.manifest import parse_manifest


def parts() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (size, 1, 4, 4), dtype=np.uint8) for size in (3, 5, 2)]


def expected(images: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(images).reshape(10, 16).astype(np.float32)


def extractor() -> Extractor:
    """Features whose value is known: the pixels. A class of this file would not reach a Ray worker."""
    return Extractor("pixels", "flat", 16, "digest", "none", nn.Flatten())


def test_parts_come_in_order_and_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    found = outputs_of_parts(parts(), extractor(), "cpu", None, lambda done, total: seen.append((done, total)))
    np.testing.assert_array_equal(found, expected(parts()))
    assert seen == [(3, 10), (8, 10), (10, 10)]
    kept = sorted(cache_folder().iterdir())
    assert len(kept) == 3
    kept[0].unlink()  # as if the audit had been cut off before its last shard
    again: list[tuple[int, int]] = []
    repeated = outputs_of_parts(parts(), extractor(), "cpu", None, lambda done, total: again.append((done, total)))
    assert len(again) == 1
    np.testing.assert_array_equal(found, repeated)


class _Sick(nn.Flatten):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).float() * (math.nan if len(x) == 5 else 1.0)


def test_features_that_are_not_finite_are_named_and_not_kept() -> None:
    """Another audit, on a device that works, must not find them in the cache."""
    sick = replace(extractor(), network=_Sick())
    found = outputs_of_parts(parts(), sick, "cpu", None, lambda done, total: None)
    assert np.isnan(found[3:8]).all() and len(list(cache_folder().iterdir())) == 2
    with pytest.raises(DataError, match=r"features: those of d, e, f, g, h are not finite"):
        check_finite("features", found, list("abcdefghij"))
    with pytest.raises(DataError, match="features: those of image 3, image 4, "):
        check_finite("features", found, ())
    healthy = outputs_of_parts(parts(), extractor(), "cpu", None, lambda done, total: None)
    check_finite("features", healthy, ())
    np.testing.assert_array_equal(healthy, expected(parts()))


def test_scores_of_the_reference_that_are_not_finite_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def sick(network: nn.Module, images: Tensor, labels: Tensor) -> Scores:
        found = score_images(network, images, labels)
        found.confidence[2] = math.inf
        return found

    monkeypatch.setattr(scores, "score_images", sick)
    manifest = parse_manifest(MANIFEST, "x")
    images = np.zeros((4, 1, 28, 28), np.uint8)
    real = LabelledImages(images, np.zeros(4, np.int64), ("x",), keys=("a", "b", "c", "d"))
    with pytest.raises(DataError, match="scores of the reference: those of c are not finite"):
        scores.score_reference(manifest, real, "cpu", quiet)


@pytest.mark.slow
def test_a_cluster_gives_the_same() -> None:
    with connected(Request(1, 0.0, 1, 1), None):
        found = outputs_of_parts(parts(), extractor(), "cpu", "auto", lambda done, total: None)
    np.testing.assert_array_equal(found, expected(parts()))
    assert len(list(cache_folder().iterdir())) == 3


def test_a_cluster_that_does_not_answer() -> None:
    with pytest.raises(DeviceError, match="ray_address: 'nonsense://' is not auto or the head's HOST:PORT"):
        outputs_of_parts(parts(), extractor(), "cpu", "nonsense://", lambda done, total: None)
