"""The metrics by name: what each one means, which direction is better, and the order in which people read them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rarefy.gates import NAMED_AFTER_EXTRACTOR, metric_kind


@dataclass(frozen=True)
class MetricKind:
    """better: higher, lower or neither; uses_k: the value depends on the neighbourhood size k."""

    label: str
    better: str
    uses_k: bool
    meaning: str


METRIC_KINDS: dict[str, MetricKind] = {
    "fid": MetricKind("FID", "lower", False, "Fréchet distance in feature space; biased upward for small sets"),
    "kid": MetricKind("KID", "lower", False, "unbiased kernel distance in feature space"),
    "inception_score": MetricKind(
        "Inception Score", "higher", False, "how certain the extractor's classifier is, and how many classes it sees"
    ),
    "precision": MetricKind("Precision", "higher", True, "fraction of generated images that lie within the real data"),
    "recall": MetricKind("Recall", "higher", True, "fraction of real test images that the generated set covers"),
    "tail_recall": MetricKind("Tail recall", "higher", True, "recall on the rarest real test images"),
    "density": MetricKind("Density", "higher", True, "how deep within the real data images lie; real images reach 1"),
    "coverage": MetricKind("Coverage", "higher", True, "fraction of real neighbourhoods with a generated image inside"),
    "tail_coverage": MetricKind("Tail coverage", "higher", True, "coverage of the rarest real test images"),
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
    "lof": MetricKind("Local outlier factor", "lower", False, "how isolated images are compared with their neighbours"),
    "duplicates": MetricKind("Duplicates", "lower", True, "fraction of images with an exact or near duplicate"),
    "copies": MetricKind("Copies", "lower", True, "fraction of images that look copied from a real image"),
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
HEADLINE_METRICS = ("recall", "tail_recall", "precision", "coverage", "fid", "on_class_rate")


def metric_name(kind: str, extractor: str) -> str:
    """The name in metrics.json. FID and KID include the extractor's, to tell them from Inception's."""
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
