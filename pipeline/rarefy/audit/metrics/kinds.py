"""The metrics by name: what each one means, which direction is better, and the order in which people read them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rarefy.gates import NAMED_AFTER_EXTRACTOR, metric_kind


@dataclass(frozen=True)
class MetricKind:
    """better: higher, lower, nearest (to the real baseline) or neither.

    uses_k: the value depends on the neighbourhood size k.
    """

    label: str
    better: str
    uses_k: bool
    meaning: str


METRIC_KINDS: dict[str, MetricKind] = {
    "fid": MetricKind("FID", "lower", False, "Fréchet distance in feature space; biased upward for small sets"),
    "fd_infinity": MetricKind(
        "FD infinity",
        "lower",
        False,
        "Fréchet distance extrapolated to infinitely many images: unbiased by their number",
    ),
    "kid": MetricKind("KID", "lower", False, "unbiased kernel distance in feature space"),
    "cmmd": MetricKind("CMMD", "lower", False, "unbiased Gaussian kernel distance of normalised features, times 1000"),
    "inception_score": MetricKind(
        "Inception Score", "higher", False, "how certain the extractor's classifier is, and how many classes it sees"
    ),
    "precision": MetricKind("Precision", "higher", True, "fraction of generated images that lie within the real data"),
    "recall": MetricKind("Recall", "higher", True, "fraction of real images that the generated set covers"),
    "tail_recall": MetricKind("Tail recall", "higher", True, "recall on the rarest real images"),
    "density": MetricKind("Density", "nearest", True, "how deep within the real data images lie; real images reach 1"),
    "coverage": MetricKind("Coverage", "higher", True, "fraction of real neighbourhoods with a generated image inside"),
    "tail_coverage": MetricKind("Tail coverage", "higher", True, "coverage of the rarest real images"),
    "clipped_density": MetricKind(
        "Clipped density",
        "higher",
        True,
        "fidelity that outliers cannot inflate: the fraction of images as good as real",
    ),
    "clipped_coverage": MetricKind(
        "Clipped coverage",
        "higher",
        True,
        "coverage that outliers cannot inflate: the fraction of images that would cover as much if they were real",
    ),
    "vendi": MetricKind(
        "Vendi score", "higher", False, "number of different images per class, where similar ones count as one"
    ),
    "rarity": MetricKind(
        "Mean rarity", "higher", True, "mean radius of the smallest real neighbourhood around each image that has one"
    ),
    "outside": MetricKind("Outside", "lower", True, "fraction of images outside every real neighbourhood"),
    "avg_knn": MetricKind(
        "AvgkNN",
        "neither",
        True,
        "mean distance to the k nearest real images; large in sparse regions or off the data",
    ),
    "nearest": MetricKind(
        "Nearest real", "neither", False, "mean distance to the nearest real image; small suggests copies"
    ),
    "lof": MetricKind(
        "Local outlier factor", "nearest", False, "how isolated images are compared with their neighbours"
    ),
    "duplicates": MetricKind("Duplicates", "lower", False, "fraction of images with an exact or near duplicate"),
    "copies": MetricKind("Copies", "lower", False, "fraction of images that look copied from a training image"),
    "authenticity": MetricKind(
        "Authenticity",
        "nearest",
        False,
        "fraction of images farther from the nearest training image than that is from its own nearest one",
    ),
    "ct": MetricKind(
        "Copying test C_T",
        "nearest",
        False,
        "z score: far below 0 if images are nearer to the training images than unseen real images are (copying), above "
        "0 if they are farther",
    ),
    "utility": MetricKind(
        "Utility",
        "higher",
        False,
        "accuracy that a probe gains on real test images when the generated ones are added to its real training images",
    ),
    "tail_utility": MetricKind("Tail utility", "higher", False, "utility on the rarest real test images"),
    "on_class_rate": MetricKind(
        "On class",
        "higher",
        False,
        "fraction of images of the requested class, by the model's judge or else by the guiding classifier",
    ),
    "on_class_guiding": MetricKind(
        "On class (guiding)",
        "neither",
        False,
        "fraction of images of the requested class by the classifier that guided them, which flatters them",
    ),
}
# Fractions of images: their intervals end at 0 and 1.
FRACTIONS = frozenset({
    "precision", "recall", "tail_recall", "coverage", "tail_coverage", "clipped_density", "clipped_coverage", "outside",
    "duplicates", "copies", "authenticity", "on_class_rate",
})  # fmt: skip
HEADLINE_METRICS = ("recall", "tail_recall", "precision", "on_class_rate", "rarity", "fid", "copies", "utility")


def metric_name(kind: str, extractor: str) -> str:
    """The name in metrics.json. Distances between sets include the extractor's, because they depend on it."""
    return f"{kind}_{extractor.replace('-', '_')}" if kind in NAMED_AFTER_EXTRACTOR else kind


def metric_label(name: str) -> str:
    """Human-readable label; an unknown name stays as it is."""
    kind = METRIC_KINDS.get(metric_kind(name))
    return kind.label if kind else name


def reading_order(names: Iterable[str]) -> list[str]:
    """Names of metrics.json, headline metrics first and unknown ones last."""
    kinds = dict.fromkeys((*HEADLINE_METRICS, *METRIC_KINDS))
    places = {kind: place for place, kind in enumerate(kinds)}
    return sorted(names, key=lambda name: places.get(metric_kind(name), len(places)))
