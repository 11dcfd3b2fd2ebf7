"""Features shard by shard: order, cache and resumption, in this process and as Ray tasks."""

import numpy as np
import pytest
from torch import nn

from rarefy.audit.features.cache import cache_folder
from rarefy.audit.features.extraction import outputs_of_parts
from rarefy.audit.features.extractors import Extractor
from rarefy.errors import DeviceError
from rarefy.generate.cluster import connected
from rarefy.generate.fit import Request


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


@pytest.mark.slow
def test_a_cluster_gives_the_same() -> None:
    with connected(Request(1, 0.0, 1, 1), None):
        found = outputs_of_parts(parts(), extractor(), "cpu", "auto", lambda done, total: None)
    np.testing.assert_array_equal(found, expected(parts()))
    assert len(list(cache_folder().iterdir())) == 3


def test_a_cluster_that_does_not_answer() -> None:
    with pytest.raises(DeviceError, match="ray_address: 'nonsense://' is not a Ray cluster that answers"):
        outputs_of_parts(parts(), extractor(), "cpu", "nonsense://", lambda done, total: None)
