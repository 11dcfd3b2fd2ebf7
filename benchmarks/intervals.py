"""How often the audit's 95% intervals contain what they should, over fresh draws of both sides.

python -m benchmarks.intervals [--generated 500] [--real 1000] [--draws 200] [--columns 64] [--kept 0.9]

Real images are those that ship with a model. In each draw, disjoint random images, equally many of each class, become
the reference and the "generated" set, whose features are moved towards the mean of their class, as those of a model
whose images vary too little. 2,000 others are the training images, the same in all draws, from which authenticity and
C_T are measured; the reference is what no training step saw. An interval is right if it contains the metric's mean over
all draws: 92 to 98% should.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rarefy.audit.features.extractors import Features, kept_outputs, load_extractor
from rarefy.audit.inputs.reference import load_reference
from rarefy.audit.metrics.assembly import DEFAULT_K, GENERATED, set_estimates
from rarefy.audit.metrics.bootstrap import Estimate, estimate_mean
from rarefy.audit.metrics.cmmd import cmmd, kernel_set
from rarefy.audit.metrics.extrapolation import enough_rows, fd_infinity, real_gaussians
from rarefy.audit.metrics.memorization import authentic, copying_test
from rarefy.audit.metrics.neighbors import Labelled, build_manifold
from rarefy.audit.metrics.ranking import nearest_rows
from rarefy.audit.metrics.spread import BOTH, infinity_estimate
from rarefy.audit.metrics.tail import Tail, tail_members
from rarefy.audit.metrics.vendi import measure_diversity
from rarefy.models.folder import find_model

MODEL = "fashion-mnist-28"
TRAINING = 2000


@dataclass(frozen=True)
class Images:
    """Features (N, D) and classes (N,) of real images, with the features as a narrow model would make them.

    training (T, D): features of other real images.
    """

    real: Features
    narrow: Features
    labels: NDArray[np.int64]
    training: Features


def load_images(columns: int, kept: float) -> Images:
    """The model's real images; ``columns`` evenly spaced features of them, ``kept`` of the distance to the mean."""
    reference, extractor = load_reference(find_model(MODEL), None), load_extractor()
    assert reference is not None  # it ships with the model
    parts = [kept_outputs(part.images, extractor) for part in (reference.real, reference.held_out)]
    labels = np.concatenate([reference.real.labels, reference.held_out.labels])
    real = np.ascontiguousarray(np.concatenate(parts)[:, :: extractor.dim // columns][:, :columns])
    means = np.stack([real[labels == each].mean(axis=0) for each in range(labels.max() + 1)])[labels]
    narrow = np.asarray(means + np.float32(kept) * (real - means), np.float32)
    order = np.random.default_rng(1).permutation(len(real))
    trained, drawn = order[:TRAINING], order[TRAINING:]
    return Images(real[drawn], narrow[drawn], labels[drawn], real[trained])


def draw_estimates(images: Images, counts: tuple[int, int], generator: np.random.Generator) -> Mapping[str, Estimate]:
    """The metrics of one draw. counts: generated and real images, equally many of each class."""
    order = generator.permutation(len(images.labels))
    classes = np.unique(images.labels)
    rows: tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]] = ([], [])
    for each in classes:
        own = order[images.labels[order] == each]
        first, second = (count // len(classes) for count in counts)
        rows[0].append(own[:first])
        rows[1].append(own[first : first + second])
    chosen = [np.concatenate(side) for side in rows]
    generated = Labelled(build_manifold(images.narrow[chosen[0]], DEFAULT_K), images.labels[chosen[0]])
    real = Labelled(build_manifold(images.real[chosen[1]], DEFAULT_K), images.labels[chosen[1]])
    found = set_estimates(generated, real, Tail("avgknn", tail_members(real.manifold, real.labels))).estimates
    return found | further_estimates(generated, real, images.training)


def further_estimates(generated: Labelled, real: Labelled, training: Features) -> dict[str, Estimate]:
    """The metrics that are not of neighbourhoods alone."""
    made, others = generated.manifold.features, real.manifold.features
    nearest, index = nearest_rows(made, training, 1)
    apart, _ = nearest_rows(training[index[:, 0]], training, 1, index[:, 0])
    found = {
        "cmmd": cmmd(kernel_set(made, generated.labels), kernel_set(others, real.labels), BOTH),
        "vendi": measure_diversity(made, generated.labels, GENERATED).mean,
        "authenticity": estimate_mean(authentic(nearest[:, 0], apart[:, 0]), GENERATED, generated.labels),
    }
    if enough_rows(min(len(made), len(others)), made.shape[1]):
        value = fd_infinity(made, real_gaussians(others))
        found["fd_infinity"] = infinity_estimate(value, (made, others), (generated.labels, real.labels))
    test = copying_test(made, others, training)
    return found if test is None else found | {"ct": test}


def report(draws: Sequence[Mapping[str, Estimate]]) -> str:
    """A Markdown table of all metrics."""
    lines = [
        "| metric | mean | standard deviation | as estimated | intervals that contain the mean |",
        "|---|---|---|---|---|",
    ]
    for kind in draws[0]:
        values = np.array([draw[kind].value for draw in draws])
        intervals = np.array([draw[kind].interval for draw in draws])
        right = (intervals[:, 0] <= values.mean()) & (values.mean() <= intervals[:, 1])
        replicates = [draw[kind].replicates for draw in draws]
        spread = np.sqrt(np.mean([drawn.var() for drawn in replicates if drawn is not None]))
        lines.append(f"| {kind} | {values.mean():.4g} | {values.std(ddof=1):.3g} | {spread:.3g} | {right.mean():.1%} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generated", type=int, default=500, help="generated images per draw")
    parser.add_argument("--real", type=int, default=1000, help="real images per draw")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--columns", type=int, default=64, help="features per image, of 1,280")
    parser.add_argument("--kept", type=float, default=0.9, help="1: generated images are real ones")
    given = parser.parse_args(argv)
    images, started = load_images(given.columns, given.kept), time.monotonic()
    generator = np.random.default_rng(0)
    draws = [draw_estimates(images, (given.generated, given.real), generator) for _ in range(given.draws)]
    print(
        f"{given.draws} draws of {given.generated} and {given.real} images, {given.columns} features, {given.kept} kept"
    )
    print(report(draws))
    print(
        f"{(time.monotonic() - started) / given.draws:.1f} s per draw; standard error of 95%: {_error(given.draws):.1%}"
    )


def _error(draws: int) -> float:
    return float(np.sqrt(0.95 * 0.05 / draws))


if __name__ == "__main__":
    main()
