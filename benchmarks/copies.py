"""Which copies of training images the audit finds: ``python -m benchmarks.copies DATA --size 28 --channels 1``.

Copies of random training images, changed in one way each, are searched for in the whole training set. The rule is
calibrated on one half of the test images; the false alarms are counted on the other half. The last column is the rule
of rarefy 0.1: a distance in feature space below a third of the mean distance of the training image to its own three
nearest neighbours.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from rarefy.audit.features.extractors import extract_outputs, load_extractor
from rarefy.audit.features.index import halved, index_features
from rarefy.audit.gallery import Gallery, ImageSet, Look, look, make_gallery
from rarefy.audit.metrics.copies import TRAINING, calibrate
from rarefy.audit.metrics.ranking import nearest_rows
from rarefy.images import LabelledImages, load_images

REPEATS = 5
OLD_K, OLD_LIMIT = 3, 1 / 3

Pixels = NDArray[np.uint8]
Change = Callable[[Pixels, np.random.Generator], Pixels]


def noisy(images: Pixels, generator: np.random.Generator, levels: float) -> Pixels:
    """Gaussian noise with this standard deviation in grey levels."""
    return _rounded(images + generator.normal(0, levels, images.shape))


def shifted(images: Pixels, generator: np.random.Generator) -> Pixels:
    """One pixel to a random side; the border is repeated."""
    bordered = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    size, places = images.shape[-1], np.array([(0, 1), (2, 1), (1, 0), (1, 2)])
    chosen = places[generator.integers(0, 4, len(images))]
    views = [each[:, y : y + size, x : x + size] for each, (y, x) in zip(bordered, chosen, strict=True)]
    return np.stack(views)


def _rounded(values: NDArray[np.floating]) -> Pixels:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


CHANGES: dict[str, Change] = {
    "exact": lambda images, _: images,
    "noise of 3 levels": lambda images, generator: noisy(images, generator, 3),
    "noise of 8 levels": lambda images, generator: noisy(images, generator, 8),
    "shifted by 1 px": shifted,
    "flipped": lambda images, _: np.ascontiguousarray(images[..., ::-1]),
    "darkened by 10%": lambda images, _: _rounded(images * 0.9),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA", help="a data set with a training and a test split")
    parser.add_argument("--size", type=int, default=28, help="height and width in pixels (default 28)")
    parser.add_argument("--channels", type=int, default=1, help="1 (grey, default) or 3")
    parser.add_argument("--copies", type=int, default=500, help="copies of each kind (default 500)")
    parser.add_argument("--unseen", type=int, default=4000, help="test images, half of them for calibration")
    options = parser.parse_args(argv)
    training, test = (load_images(options.data, options.size, options.channels, split) for split in ("train", "test"))
    Benchmark(training, test, options.copies, options.unseen).print()


class Benchmark:
    """The search of one data set, in which some images occur five times: three times as they are, twice with noise."""

    def __init__(self, training: LabelledImages, test: LabelledImages, copies: int, unseen: int) -> None:
        self.extractor, self.generator = load_extractor(), np.random.default_rng(0)
        self.rows = self.generator.permutation(len(training))[:copies]
        self.repeated = self.rows[: copies // 5]
        own = training.images[self.repeated]
        further = [own if equal else noisy(own, self.generator, 1) for equal in (True, True, False, False)]
        self.images = training.images
        whole = LabelledImages(
            np.concatenate([training.images, *further]),
            np.concatenate([training.labels, *[training.labels[self.repeated]] * len(further)]),
            training.class_names,
        )
        features = [
            index_features(part, self.extractor, "cpu", lambda done, total: None)
            for part in (training.images, np.concatenate(further))
        ]
        self.gallery = make_gallery({TRAINING: whole}, [np.concatenate(features)], "cpu")
        self.test = test.images[self.generator.permutation(len(test))[:unseen]]

    def print(self) -> None:
        half = len(self.test) // 2
        rule = calibrate(self.look(self.test[:half]).closeness)
        print(
            f"{len(self.images):,} training images; limits {rule.pixel:.3f} (pixels), {rule.feature:.3f} (features)\n"
        )
        print("| images | count | counted as copies | of these, of the right image | by the old rule | seconds |")
        print("|---|---|---|---|---|---|")
        for name, change in CHANGES.items():
            self._row(name, change(self.images[self.rows], self.generator), rule.ratio, self.rows)
        repeated = noisy(self.images[self.repeated], self.generator, 3)
        self._row("noise of 3 levels, five times in the training set", repeated, rule.ratio, None)
        self._row("**unseen test images (false alarms)**", self.test[half:], rule.ratio, None)

    def look(self, images: Pixels) -> Look:
        features = extract_outputs(images, self.extractor)
        return look(ImageSet(images, halved(features)), self.gallery, "cpu")

    def _row(
        self, name: str, images: Pixels, ratio: Callable[..., NDArray[np.float64]], source: NDArray[np.int64] | None
    ) -> None:
        started = time.monotonic()
        found = self.look(images)
        seconds = time.monotonic() - started
        flagged = ratio(found.closeness) < 1
        right = "" if source is None else f"{self._right(found, source, flagged):.1%}"
        old = old_rule(found, self.gallery)
        print(
            f"| {name} | {len(images):,} | {flagged.mean():.1%} | {right} | {old.mean():.1%} | {seconds:.0f} |",
            flush=True,
        )

    def _right(self, found: Look, source: NDArray[np.int64], flagged: NDArray[np.bool_]) -> float:
        """The fraction of the copies whose most similar image is the one that was copied, or a repetition of it."""
        row = self.gallery.rows[found.pixel_index]
        beyond = row - len(self.images)
        same = np.where(beyond < 0, row, self.repeated[beyond % len(self.repeated)])
        return float((same == source)[flagged].mean())


def old_rule(found: Look, gallery: Gallery) -> NDArray[np.bool_]:
    """Which images the rule of rarefy 0.1 counts as copies."""
    hits, back = np.unique(found.trained_index, return_inverse=True)
    own, _ = nearest_rows(gallery.features[hits], gallery.features, OLD_K, hits)
    return np.asarray(found.trained < OLD_LIMIT * own.mean(axis=1)[back])


if __name__ == "__main__":
    main()
