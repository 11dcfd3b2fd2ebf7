"""Whether training may mirror images: measured by how well mirrored held-out images are recognised."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rarefy.audit.features.extractors import Step, extract_outputs, load_extractor
from rarefy.images import LabelledImages

MOST_TRAIN, MOST_TEST = 2000, 1000
FEWEST_TEST = 30
CLEAR = 2.0  # standard errors by which mirrored images must be recognised worse
RIDGE = 100.0


@dataclass(frozen=True)
class Mirror:
    """flip: whether training mirrors half of the images; why: the reason, with what was measured."""

    flip: bool
    why: str


def measure_mirror(
    data: LabelledImages, rows: NDArray[np.int64], held_out: LabelledImages, step: Step | None = None
) -> Mirror:
    """Recognise held-out images, plain and mirrored, with features that were not trained on this data.

    rows: of the images in ``data`` that are trained on; step(done, total) counts images. A ridge classifier is fitted
    to the EfficientNet-lite0 features of training images. Mirroring is off if clearly fewer held-out images are
    recognised when mirrored: by more than two standard errors of the paired difference.
    """
    test = held_out.take(_some(np.arange(len(held_out)), MOST_TEST))
    if len(np.unique(test.labels)) < 2:
        return Mirror(False, "off: with held-out images of fewer than two classes, its effect cannot be measured")
    if len(test) < FEWEST_TEST:
        return Mirror(False, f"off: {len(test)} held-out images are too few to measure its effect")
    train = data.take(_some(rows, MOST_TRAIN))
    plain, mirrored = _recognised(train, test, step)
    rates = f"{plain.mean():.1%} of held-out images are recognised, {mirrored.mean():.1%} if mirrored"
    worse, better = int((plain & ~mirrored).sum()), int((mirrored & ~plain).sum())
    if worse - better > CLEAR * math.sqrt(worse + better):
        return Mirror(False, f"off: {rates}")
    return Mirror(True, f"on: {rates}")


def _recognised(
    train: LabelledImages, test: LabelledImages, step: Step | None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether each held-out image is classified correctly, plain and mirrored."""
    from sklearn.linear_model import RidgeClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pixels = np.concatenate([train.images, test.images, test.images[..., ::-1]])
    features = extract_outputs(pixels, load_extractor(), step=step)
    classifier = make_pipeline(StandardScaler(), RidgeClassifier(RIDGE))
    classifier.fit(features[: len(train)], train.labels)
    right = classifier.predict(features[len(train) :]) == np.tile(test.labels, 2)
    return right[: len(test)], right[len(test) :]


def _some(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most so many of the rows, chosen at random with a fixed seed."""
    return np.sort(np.random.default_rng(0).permutation(rows)[:most])
