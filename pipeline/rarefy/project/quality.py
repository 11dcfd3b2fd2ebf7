"""The measured quality of a trained model: its images and as many real ones, compared with the held-out images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from rarefy.execution import prepare
from rarefy.models.checkpoint import load_network
from rarefy.models.file_hash import file_sha256
from rarefy.models.folder import ModelFolder
from rarefy.models.networks import build_classifier, build_network
from rarefy.project.checks import SmallAudit
from rarefy.training.data import TrainingSet
from rarefy.training.log import figures
from rarefy.training.output import RealImages, read_json, write_json
from rarefy.training.progress import say
from rarefy.training.samples import sampler_of

IMAGES = 1000
SHARE = 0.1
"""Measuring may take this fraction of the time that training took."""
JUDGES = ("judge", "classifier")


def measure_quality(model: ModelFolder, images: RealImages, device: torch.device) -> None:
    """Write ``quality`` into the folder's provenance, unless it was measured with the same weights before."""
    path = model.path / "provenance.json"
    record = read_json(path)
    if images.held_out is None or "unet" not in model.files or not model.file("unet").exists():
        return
    roles = [role for role in ("unet", find_judge(model)) if role is not None]
    weights = {role: file_sha256(model.file(role)) for role in roles}
    if record.get("quality", {}).get("weights") == weights:
        return
    audit = small_audit(model, images, device, IMAGES)
    if audit is None:
        say(f"quality is not measured: {len(images.held_out):,} held-out images are too few")
        return
    say("measuring the images of the model")
    network, _ = load_network(lambda: build_network(model.unet, "unet", model.allow_plugins), model.file("unet"))
    unet = prepare(network, device)
    seconds = sum(entry["seconds"] for entry in record.values() if isinstance(entry, dict) and "seconds" in entry)
    measured, sampler = audit(unet, SHARE * seconds), sampler_of(model)
    record["quality"] = {
        **_rounded(measured),
        "reference_images": len(audit.held_out),
        "sampler": f"{sampler.method}, {sampler.steps} from step {sampler.start}, no guidance",
        "judged_by": find_judge(model),
        "real": _rounded(real_baseline(audit, images.train, int(measured["sample_images"]))),
        "weights": weights,
    }
    write_json(path, record)
    say(f"quality: {figures(measured)}")


def small_audit(
    model: ModelFolder, images: RealImages, device: torch.device, count: int | None = None
) -> SmallAudit | None:
    """The audit of the model's images by its judge or else its classifier; None without enough held-out images."""
    if images.held_out is None or not SmallAudit.enough(images.held_out):
        return None
    classify: nn.Module | None = None
    if (role := find_judge(model)) is not None:
        network, _ = load_network(lambda: build_classifier(model.classifier), model.file(role))
        classify = prepare(network, device)
    audit = SmallAudit(model, images.held_out, device, classify)
    audit.images = count or audit.images
    return audit


def find_judge(model: ModelFolder) -> str | None:
    """The role of the trained network that judges images: the judge's, else the classifier's, else None.

    None, too, for an unconditional U-Net, whose images are of no chosen class.
    """
    if model.num_classes is None:
        return None
    return next((role for role in JUDGES if role in model.files and model.file(role).exists()), None)


def real_baseline(audit: SmallAudit, data: TrainingSet, count: int) -> dict[str, float]:
    """The metrics of as many training images of the same classes; the fraction on class is that of held-out images."""
    labels = audit.labels()[:count]
    rows = same_classes(data, labels)
    values = audit.measure(data.source.images[rows], data.source.labels[rows])
    if audit.classify is not None:
        values["on_class"] = audit.on_class(audit.held_out.images, audit.held_out.labels)
    return values


def same_classes(data: TrainingSet, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of random training images with these labels, without repetition as far as a class has enough images."""
    rng, rows = np.random.default_rng(0), list[NDArray[np.int64]]()
    own = data.labels
    for class_id, count in zip(*np.unique(labels, return_counts=True), strict=True):
        members = rng.permutation(data.rows[own == class_id])
        if len(members):
            rows.append(np.resize(members, count))
    return np.sort(np.concatenate(rows))


def _rounded(values: dict[str, float]) -> dict[str, Any]:
    return {name: round(value, 4) for name, value in values.items()}
