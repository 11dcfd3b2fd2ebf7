"""The real images that are nearest to a generated one."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rarefy.audit.inputs.model import find_run_model
from rarefy.audit.inputs.reference import load_reference
from rarefy.audit.schema import METRICS_PATH, read_result
from rarefy.errors import DataError
from rarefy.images import LabelledImages
from rarefy.manifest import Manifest
from rarefy.shards.store import Store

BY_PIXELS = 5  # images shown
BLOCK_VALUES = 1 << 24  # compared at once
FEATURES, PIXELS = "features", "pixels"


@dataclass(frozen=True)
class Near:
    """A real image. row: in the reference; by: features or pixels; distance: in the audit's features, or root mean
    square difference in grey levels of 0 to 255; None if it is not known."""

    row: int
    key: str
    class_name: str
    by: str
    distance: float | None


class RealImages:
    """The audit's real images, loaded when they are first asked for. Safe to use from several threads.

    reference: the user's --reference; model: the user's --model, see ``find_run_model``.
    """

    def __init__(self, store: Store, manifest: Manifest, reference: str | None, model: str | None) -> None:
        self._store, self._manifest, self._reference, self._model = store, manifest, reference, model
        self._lock = threading.Lock()

    def near(self, image: NDArray[np.uint8], nearest: str | None, distance: float | None) -> list[Near]:
        """The nearest by features, which the audit has found, then the nearest by pixels.

        image: (C, H, W) uint8; nearest: key of the nearest by features, None if no audit has looked for it.
        Raises DataError, which says why there are no real images to show.
        """
        real = self.images
        found = []
        if nearest is not None:
            if (row := self._rows.get(nearest)) is None:
                raise DataError(f"reference: {nearest!r} is not the key of one of its images; give the audit's images")
            found.append(self._near(row, FEATURES, distance))
        rms = pixel_distances(real.images, image)
        order = np.argsort(rms, kind="stable")[:BY_PIXELS]
        return found + [self._near(int(row), PIXELS, float(rms[row])) for row in order]

    def image(self, row: int) -> NDArray[np.uint8]:
        """One of them. Raises DataError."""
        if not 0 <= row < len(self.images):
            raise DataError(f"reference: {row} is not the number of one of its {len(self.images)} images")
        return np.asarray(self.images.images[row])

    @property
    def images(self) -> LabelledImages:
        """All of them. Raises DataError, ManifestError or CheckpointError."""
        with self._lock:
            return self._loaded

    @cached_property
    def _loaded(self) -> LabelledImages:
        preset = self._manifest.preset
        own = self._reference is None and "reference" in preset.files
        spec = find_run_model(self._manifest.model, self._model, needed=own)
        reference = load_reference(spec.folder, self._reference)
        if reference is None:
            raise DataError(f"the model {spec.folder.name} has no real images; start rarefy view with --reference DATA")
        real = reference.of_classes(self._manifest.counts).real
        if (wanted := self._audited()) is not None and real.sha256() != wanted:
            raise DataError("these are not the real images of the audit; start rarefy view with its --reference DATA")
        return real

    def _audited(self) -> str | None:
        """Hash of the real images that the audit compared with, None without an audit."""
        return read_result(self._store).provenance.reference_sha256 if self._store.exists(METRICS_PATH) else None

    @cached_property
    def _rows(self) -> Mapping[str, int]:
        return {key: row for row, key in enumerate(self.images.keys)}

    def _near(self, row: int, by: str, distance: float | None) -> Near:
        real = self.images
        return Near(row, real.keys[row], real.class_names[int(real.labels[row])], by, distance)


def pixel_distances(images: NDArray[np.uint8], image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Root mean square difference of one image (C, H, W) from each of N, in grey levels. Blocks bound the memory."""
    step = max(1, BLOCK_VALUES // image.size)
    squares = [
        np.square(images[start : start + step].astype(np.int32) - image).mean(axis=(1, 2, 3))
        for start in range(0, len(images), step)
    ]
    distances: NDArray[np.float64] = np.sqrt(np.concatenate(squares))
    return distances
