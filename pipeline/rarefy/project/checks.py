"""A small audit of a diffusion model in training: its images against held-out ones, within a time limit."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from rarefy.audit.features.extractors import Extractor, Features, Images, extract_outputs, kept_outputs, load_extractor
from rarefy.audit.metrics.assembly import DEFAULT_K, set_metrics
from rarefy.audit.metrics.neighbors import Manifold, build_manifold
from rarefy.images import LabelledImages
from rarefy.models.folder import ModelFolder
from rarefy.training.held_out import scaled
from rarefy.training.samples import draw_images

IMAGES, FEWEST = 500, 50
BATCH = 50
REFERENCE_IMAGES = 2000


@dataclass(eq=False)
class SmallAudit:
    """Measures images of a network: call it with the network and the seconds that it may take.

    Draws up to 500 images, at least 50, with the classes of random held-out images, in 20 deterministic steps without
    guidance. classify: (B, C, H, W) images in [-1, 1] -> logits (B, K), for the fraction of images on class; None
    without a classifier.
    """

    model: ModelFolder
    held_out: LabelledImages
    device: torch.device
    classify: nn.Module | None = None
    images: int = IMAGES
    _reference: tuple[Extractor, Manifold] | None = field(default=None, init=False)

    @staticmethod
    def enough(held_out: LabelledImages) -> bool:
        """Whether there are enough held-out images for neighbourhoods of three."""
        return len(held_out) > DEFAULT_K

    def __call__(self, network: nn.Module, budget_s: float) -> dict[str, float]:
        """Recall, precision, FID (EfficientNet-lite0 features) and the fraction on class, with the number of images."""
        labels = self.labels()
        drawn = self._draw(network, labels, budget_s)
        return self.measure(drawn, labels[: len(drawn)])

    def measure(self, images: Images, labels: NDArray[np.int64]) -> dict[str, float]:
        """The metrics of (N, C, H, W) uint8 images of the given classes."""
        _, real = self._real()
        metrics = set_metrics(self._features(images), real)
        values = {"fid": metrics.fid, "precision": metrics.precision, "recall": metrics.recall}
        if self.classify is not None:
            values["on_class"] = self.on_class(images, labels)
        return {**values, "sample_images": len(images)}

    @torch.no_grad()
    def on_class(self, images: Images, labels: NDArray[np.int64]) -> float:
        """Fraction of images whose class the classifier recognises, from 0 to 1."""
        assert self.classify is not None
        hits = 0
        for start in range(0, len(images), BATCH):
            x = scaled(images[start : start + BATCH]).to(self.device)
            predicted = self.classify(x, torch.zeros(len(x), device=self.device)).argmax(-1).cpu().numpy()
            hits += int((predicted == labels[start : start + BATCH]).sum())
        return hits / len(images)

    def labels(self) -> NDArray[np.int64]:
        """Classes to draw: the classes of the held-out images in random order, repeated if there are too few."""
        order = np.random.default_rng(0).permutation(len(self.held_out))
        return np.resize(self.held_out.labels[order], self.images)

    def _draw(self, network: nn.Module, labels: NDArray[np.int64], budget_s: float) -> Images:
        started, parts, count = time.monotonic(), list[Images](), 0
        for batch in draw_images(network, self.model, torch.from_numpy(labels)):
            parts.append(batch.numpy())
            count += len(batch)
            if count >= FEWEST and time.monotonic() - started > budget_s:
                break
        return np.concatenate(parts)

    def _real(self) -> tuple[Extractor, Manifold]:
        if self._reference is None:
            extractor = load_extractor()
            rows = np.random.default_rng(0).permutation(len(self.held_out))[:REFERENCE_IMAGES]
            outputs = kept_outputs(np.asarray(self.held_out.images[np.sort(rows)]), extractor, self.device)
            self._reference = extractor, build_manifold(outputs, DEFAULT_K)
        return self._reference

    def _features(self, images: Images) -> Features:
        return extract_outputs(images, self._real()[0], self.device)
