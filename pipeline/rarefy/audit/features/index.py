"""Features of a training set: made once per extractor, in parts that an interrupted audit need not make again."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rarefy.audit.features.cache import keep_arrays, recall
from rarefy.audit.features.extractors import Extractor, Features, Images, Step, cache_key, check_finite, extract_outputs

PART = 4096  # images per file of the cache
LARGEST_HALF = 6e4


def index_features(images: Images, extractor: Extractor, device: str, step: Step) -> NDArray[np.floating]:
    """Features (N, D) of the images as float16, or float32 if the extractor's are too large for it.

    The parts are kept in the user's cache. Raises DataError if features are not finite.
    """
    parts = list[NDArray[np.floating]]()
    for start in range(0, len(images), PART):
        part = np.ascontiguousarray(images[start : start + PART])
        key = ("index", *cache_key(extractor, part))
        stored = recall(key)
        if stored is None:
            outputs = extract_outputs(part, extractor, device)
            check_finite("features of the training images", outputs, ())
            stored = {"features": halved(outputs[:, : extractor.dim])}
            keep_arrays(key, stored)
        parts.append(np.asarray(stored["features"]))
        step(start + len(part), len(images))
    return np.concatenate(parts)


def halved(features: Features) -> NDArray[np.floating]:
    """Features rounded to float16, which changes distances by less than a thousandth; unchanged if that overflows."""
    return features.astype(np.float16) if float(np.abs(features).max(initial=0)) < LARGEST_HALF else features
