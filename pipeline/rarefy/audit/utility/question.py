"""Chooses the images with which an audit measures utility: what to train on, and what to test with."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from rarefy.audit.features.index import index_features
from rarefy.audit.inputs.dataset import RunData
from rarefy.audit.inputs.training import TrainingSet
from rarefy.audit.metrics.tail import Tail
from rarefy.audit.sides import Progress, Setting, Side, Sides
from rarefy.audit.utility.measure import Answer, Question, measure_utility
from rarefy.audit.utility.trainings import Examples
from rarefy.errors import DataError, bad
from rarefy.images.labelled import pixel_digest

MAX_REAL = 10_000
FEWEST = 20  # images of either kind
SEED = 7


def answer_utility(
    run: RunData,
    sides: Sides,
    tail: Tail,
    training: TrainingSet | None,
    setting: Setting,
    progress: Progress,
) -> Answer | None:
    """Utility of all images of the run; None for a model without classes or with fewer than 20 images of either kind.

    The real training images are at most 10,000 random ones of the model's whole training set or, where the audit does
    not have it, those that are held out from the reference. Raises DataError if there is no answer although the network
    was asked for.
    """
    test = _examples(sides.real)
    real, source = _real(sides, training, test, setting, progress)
    generated = Examples(run.images, sides.run_features, run.measured.class_id)
    if len(np.unique(test.labels)) < 2 or min(len(real), len(generated)) < FEWEST:
        if setting.network:
            allowed = f"possible: it needs two classes and {FEWEST} real and generated images"
            raise DataError(bad("utility", f"{len(real)} real and {len(generated)} generated images", allowed))
        return None
    preset = run.manifest.preset
    names = tuple(preset.class_name(class_id) for class_id in range(_classes(real, generated, test)))
    question = Question(real, generated, test, tail.members, source, names)
    return measure_utility(question, setting.device if setting.network else None, progress)


def _classes(*sets: Examples) -> int:
    return 1 + max(int(each.labels.max()) for each in sets)


def _examples(side: Side) -> Examples:
    return Examples(side.images, side.manifold.features, side.labels)


def _real(
    sides: Sides, training: TrainingSet | None, test: Examples, setting: Setting, progress: Progress
) -> tuple[Examples, str]:
    """The real images to train on, none of which is in the test set, and where they come from."""
    if training is None or not training.whole:
        images = _examples(sides.held_out)
        rows = _at_most(_unseen(images.images, test))
        return images.take(rows), f"{len(rows):,} real images outside the reference"
    rows = _at_most(_unseen(training.images.images, test))
    step = partial(progress, "features of the training images")
    features = index_features(training.images.images, setting.extractor, setting.device, step)[rows]
    chosen = training.images.take(rows)
    part = "" if len(rows) == len(training.images) else f"{len(rows):,} images of "
    return Examples(chosen.images, features.astype(np.float32), chosen.labels), f"{part}{training.source}"


def _at_most(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.sort(np.random.default_rng(SEED).permutation(rows)[:MAX_REAL])


def _unseen(images: NDArray[np.uint8], test: Examples) -> NDArray[np.int64]:
    """Rows of the images that are not also test images."""
    tested = {pixel_digest(image) for image in test.images}
    return np.flatnonzero([pixel_digest(image) not in tested for image in images])
