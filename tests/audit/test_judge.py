"""On class is what the model's judge sees, not what the classifier that guided the images says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_run import MANIFEST, quiet

from rarefy.audit.audit import AuditOptions, run_audit
from rarefy.audit.features import scores
from rarefy.audit.inputs.reference import read_embedded
from rarefy.manifest import Manifest, parse_manifest
from rarefy.models.adm import Classifier
from rarefy.models.checkpoint import read_state
from rarefy.models.folder import find_model
from rarefy.shards.store import Store

MODEL = find_model("fashion-mnist-28")
Source = Callable[[int, int], tuple[NDArray[np.uint8], int, float]]
CommitImages = Callable[[Store, str, Source], Manifest]


def judged(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The judge's classes in plain torch."""
    judge = Classifier(MODEL.classifier).eval()
    judge.load_state_dict(read_state(MODEL.file("judge")))
    with torch.no_grad():
        logits = judge(torch.from_numpy(images) / 127.5 - 1, torch.zeros(len(images)))
    return np.asarray(logits.argmax(dim=1))


def test_the_judge_decides_and_the_guiding_classifier_has_its_own_name(
    tmp_path: Path, commit_images: CommitImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = read_embedded(MODEL, "reference")
    made: list[tuple[int, NDArray[np.uint8]]] = []

    def wrong_every_third_time(class_id: int, ordinal: int) -> tuple[NDArray[np.uint8], int, float]:
        rows = np.flatnonzero(real.labels == (9 if ordinal % 3 == 0 else class_id))
        made.append((class_id, real.images[rows[ordinal]]))
        return made[-1][1], class_id, 0.99  # the guiding classifier is pleased with all of them

    store = Store(str(tmp_path / "out"))
    manifest = commit_images(store, MANIFEST, wrong_every_third_time)
    monkeypatch.setattr("rarefy.audit.audit.load_reference", lambda preset, folder: None)
    result = run_audit(store, AuditOptions(), quiet)
    assert sum(manifest.counts.values()) == len(made)
    right = judged(np.stack([image for _, image in made])) == [class_id for class_id, _ in made]
    of_judge, guiding = (result["metrics"][name] for name in ("on_class_rate", "on_class_guiding"))
    assert of_judge["value"] == pytest.approx(right.mean())
    assert 0.5 < of_judge["value"] < 0.75
    weights = [row["on_class_rate"] * row["count"] for row in result["per_class"]]
    assert sum(weights) == pytest.approx(right.sum())
    assert guiding["value"] == 1
    assert (of_judge["extractor"], guiding["extractor"]) == ("judge", "guiding classifier")
    assert (of_judge["better"], guiding["better"]) == ("higher", "neither")  # as METRIC_KINDS says


def test_the_judge_agrees_with_plain_torch_and_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    real = read_embedded(MODEL, "reference").take(np.arange(40))
    manifest = parse_manifest(MANIFEST, "x")
    found = scores.judge_images(manifest, real.images, "cpu", quiet)
    assert found is not None
    assert found.tolist() == judged(real.images).tolist()
    assert (found == real.labels).mean() > 0.8
    monkeypatch.setattr(scores, "score_images", None)
    again = scores.judge_images(manifest, real.images, "cpu", quiet)
    assert again is not None
    assert again.tolist() == found.tolist()
