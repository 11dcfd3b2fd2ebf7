"""An audit with two extractors and a network for utility: what it writes, and which options it refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from rarefy.audit.audit import AuditOptions, run_audit
from rarefy.audit.features.fidelity import load_module
from rarefy.audit.schema import AuditResult, read_result
from rarefy.audit.utility import network
from rarefy.errors import ManifestError
from rarefy.manifest import Manifest
from rarefy.shards.store import Store

CommitRun = Callable[[Store, str], Manifest]
Blob = Callable[[int, int], tuple[NDArray[np.uint8], int, float]]
RUN = """name = "two"
[model]
name = "fashion-mnist-28"
[classes]
per_class = 8
[output]
shard_size = 40
"""


def register(name: str, size: int) -> None:
    """An extractor whose features are the image's means over a grid of size x size places."""
    base = load_module("feature_extractor_base").FeatureExtractorBase

    class Grid(base):  # type: ignore[misc,valid-type]  # untyped package
        def __init__(self, name: str, layers: list[str], **_: object) -> None:
            super().__init__(name, layers)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("grid",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "grid"

        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor]:
            means = torch.nn.functional.adaptive_avg_pool2d(pixels[:, :1].float(), size)
            return (means.flatten(1),)

    load_module("registry").register_feature_extractor(name, Grid)


@pytest.fixture
def grids() -> Iterator[None]:
    register("grid-3", 3)
    register("grid-4", 4)
    yield
    for name in ("grid-3", "grid-4"):
        del load_module("registry").FEATURE_EXTRACTORS_REGISTRY[name]


@pytest.mark.usefixtures("grids")
def test_an_audit_with_two_extractors_and_utility(
    tmp_path: Path, real_folder: Path, blob: Blob, commit_run: CommitRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "STEPS", 2)
    for class_id in range(10):
        (folder := tmp_path / "training" / str(class_id)).mkdir(parents=True)
        for ordinal in range(4):
            Image.fromarray(blob(class_id, 2000 + ordinal)[0][0]).save(folder / f"{ordinal}.png")
    store = Store(str(tmp_path / "out"))
    commit_run(store, RUN)
    folders = {"reference": str(real_folder), "training": str(tmp_path / "training")}
    options = AuditOptions("grid-3", 2, further_extractors=(("grid-4", None),), utility=True, **folders)
    run_audit(store, options, lambda stage, done, total: None)
    result = read_result(store)
    assert AuditResult.from_json(result.to_json()) == result
    check_metrics(result)
    check_utility(result)
    for row in result.per_class:
        assert row.vendi is not None and 1 <= row.vendi <= 8
        assert row.vendi_floor is not None and 1 <= row.vendi_floor <= 8
        assert row.utility is not None and row.utility_real is not None


def check_metrics(result: AuditResult) -> None:
    (name, other), metrics = *result.other_extractors.items(), result.metrics
    assert name == "grid-4"
    kinds = {"clipped_density", "clipped_coverage", "vendi", "recall", "lof"}
    assert kinds | {"fid_grid_4", "fd_infinity_grid_4", "kid_grid_4", "cmmd_grid_4"} <= other.keys()
    assert kinds | {"fid_grid_3", "fd_infinity_grid_3", "cmmd_grid_3", "utility", "tail_utility"} <= metrics.keys()
    assert (other["recall"].extractor, metrics["recall"].extractor) == ("grid-4", "grid-3")
    assert {"copies", "utility"}.isdisjoint(other)
    for entry in (metrics["cmmd_grid_3"], metrics["clipped_density"], metrics["vendi"], metrics["utility"]):
        assert entry.interval is not None and entry.interval[0] <= entry.value <= entry.interval[1]
    assert 0 <= metrics["clipped_density"].value <= 1
    assert metrics["vendi"].floor is not None


def check_utility(result: AuditResult) -> None:
    probe, small = result.utility
    assert (probe.classifier, small.classifier) == ("probe", "network")
    assert probe.source.startswith("100 real images outside the reference; 80 generated images are too few for 1 or 2")
    assert [(row.data, row.ratio, row.images) for row in probe.trainings] == [
        ("real", None, 100), ("generated", None, 80), ("both", 0.25, 125), ("both", 0.5, 150), ("both", 0.8, 180),
    ]  # fmt: skip
    gain = probe.trainings[-1].accuracy - probe.trainings[0].accuracy
    entry = result.metrics["utility"]
    assert entry.value == pytest.approx(gain)
    assert (entry.generated_count, entry.real_count, entry.floor) == (80, 100, None)  # no half of a class has 8 images


@pytest.mark.usefixtures("grids")
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (AuditOptions("grid-3", further_extractors=(("grid-3", None),)), "extractor: 'grid-3' was given twice"),
        (AuditOptions("efficientnet-lite0-native"), "not possible for images of 28 px: it needs 32 px"),
        (AuditOptions("grid-3", k=0), "k: 0 is not at least 1"),
    ],
)
def test_options_that_do_not_work(options: AuditOptions, told: str, tmp_path: Path, commit_run: CommitRun) -> None:
    store = Store(str(tmp_path / "out"))
    commit_run(store, RUN)
    with pytest.raises(ManifestError, match=told):
        run_audit(store, options, lambda stage, done, total: None)
