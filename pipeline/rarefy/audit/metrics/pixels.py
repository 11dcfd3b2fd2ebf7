"""Finds images that show the same picture up to noise, a flip, a shift by a pixel, brightness and contrast.

Candidates are found by thumbnails and then compared pixel by pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rarefy.audit.metrics.ranking import Step, top_columns

SIDE = 32  # larger images are compared at this size
GRID = 8  # side of a thumbnail
CANDIDATES = 32
GAIN = (0.8, 1.25)  # range of the contrast between an image and its copy
THUMBNAIL_ROWS, PAIR_ROWS = 4096, 64  # images in memory as floats at a time
SHIFTS = ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))  # of a window within a border of one pixel

Pixels = NDArray[np.uint8]
Indices = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class ImageStack:
    """Several arrays of images (N_i, C, H, W) as one, without copying them, since they may be memory-mapped.

    rows: the images that count, as numbers within the whole stack.
    """

    parts: tuple[Pixels, ...]
    rows: Indices

    @classmethod
    def of(cls, images: Pixels) -> ImageStack:
        """All images of one array."""
        return cls((images,), np.arange(len(images)))

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, places: Indices) -> Pixels:
        """The images at these places among ``rows``: (len(places), C, H, W)."""
        rows = self.rows[places]
        images = np.empty((len(rows), *self.parts[0].shape[1:]), np.uint8)
        start = 0
        for part in self.parts:
            inside = (rows >= start) & (rows < start + len(part))
            images[inside] = part[rows[inside] - start]
            start += len(part)
        return images


@dataclass(frozen=True)
class Matches:
    """The most similar images of N images, most similar first.

    distance (N, K): root mean square difference in grey levels after the best flip, shift, brightness and contrast,
    both images lightly blurred, so that noise counts little; index (N, K): which images.
    """

    distance: Floats
    index: Indices


class PixelSearch:
    """A search for similar pictures among M images.

    Memory: M thumbnails of 8 x 8 x C floats and blocks; the images are read as they are needed.
    """

    def __init__(self, stack: ImageStack, device: str = "cpu") -> None:
        self.stack, self.device = stack, device
        starts = range(0, len(stack), THUMBNAIL_ROWS)
        places = [np.arange(start, min(start + THUMBNAIL_ROWS, len(stack))) for start in starts]
        self._thumbnails = torch.cat([_thumbnails(_scaled(stack.take(part), device)) for part in places])

    def nearest(
        self, images: Pixels, k: int = CANDIDATES, itself: Indices | None = None, step: Step | None = None
    ) -> Matches:
        """The k most similar of the M images for each of N images; fewer if M is smaller.

        itself (N,): the place of each image among the M, which does not count; -1 for none.
        """
        found = self._candidates(images, k, itself)
        distance = self.distances(images, found, step)
        order = distance.argsort(axis=1, kind="stable")
        return Matches(np.take_along_axis(distance, order, 1), np.take_along_axis(found, order, 1))

    def distances(self, images: Pixels, places: Indices, step: Step | None = None) -> Floats:
        """Distances (N, K) as in ``Matches`` between N images and, for each, those at K places (N, K)."""
        distance = np.empty(places.shape, np.float32)
        for start in range(0, len(images), PAIR_ROWS):
            part = slice(start, min(start + PAIR_ROWS, len(images)))
            others = _scaled(self.stack.take(places[part].flatten()), self.device)
            inner = _centred(_blurred(others)[..., 1:-1, 1:-1])
            windows = _windows(_blurred(_scaled(images[part], self.device)))
            distance[part] = _fitted(windows, inner.view(*places[part].shape, -1)).cpu().numpy()
            if step is not None:
                step(part.stop, len(images))
        return distance

    def _candidates(self, images: Pixels, k: int, itself: Indices | None) -> Indices:
        """The places (N, k) of the most similar thumbnails, over flips and shifts by one pixel."""
        variants = self._variants(images)

        def scores(rows: slice, columns: slice) -> Tensor:
            block = self._thumbnails[columns].T
            best = variants[0][rows] @ block
            for variant in variants[1:]:
                torch.maximum(best, variant[rows] @ block, out=best)
            return best

        there = len(self.stack) - (itself is not None)
        return top_columns(scores, (len(images), len(self.stack)), min(k, there), itself)

    def _variants(self, images: Pixels) -> list[Tensor]:
        """Thumbnails (N, D) of the images and their mirror images, each shifted by at most a pixel."""
        parts: list[list[Tensor]] = [[] for _ in range(2 * len(SHIFTS))]
        for start in range(0, len(images), THUMBNAIL_ROWS):
            scaled = _scaled(images[start : start + THUMBNAIL_ROWS], self.device)
            side, bordered = scaled.shape[-1], F.pad(scaled, (1, 1, 1, 1), mode="replicate")
            shifted = [bordered[..., y : y + side, x : x + side] for y, x in SHIFTS]
            for place, each in enumerate([*shifted, *(view.flip(-1) for view in shifted)]):
                parts[place].append(_thumbnails(each))
        return [torch.cat(part) for part in parts]


def _scaled(images: Pixels, device: str) -> Tensor:
    """float32 pixels at the size of the comparison."""
    x = torch.from_numpy(np.ascontiguousarray(images)).to(device).float()
    return x if x.shape[-1] <= SIDE else F.adaptive_avg_pool2d(x, SIDE)


def _thumbnails(x: Tensor) -> Tensor:
    """(N, D) with mean 0 and norm 1, so that brightness and contrast do not matter."""
    small = F.adaptive_avg_pool2d(x, GRID).flatten(1)
    small = small - small.mean(dim=1, keepdim=True)
    unit: Tensor = small / small.norm(dim=1, keepdim=True).clamp_min(1e-6)
    return unit


def _blurred(x: Tensor) -> Tensor:
    """Binomial filter of 3 x 3 pixels: what is left of white noise is 0.375 of it, of pictures nearly all.

    By sums of shifted views, which take a third of the time of a grouped convolution on a CPU.
    """
    x = F.pad(x, (1, 1, 1, 1), mode="replicate")
    x = x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]
    return (x[..., :-2, :] + 2 * x[..., 1:-1, :] + x[..., 2:, :]) / 16


def _centred(x: Tensor) -> Tensor:
    """(N, D) pixels minus their mean, which takes the brightness out."""
    flat = x.flatten(1)
    return flat - flat.mean(dim=1, keepdim=True)


def _windows(x: Tensor) -> Tensor:
    """(N, 18, D): all but the border, shifted by -1, 0 or 1 pixel each way, of the images and their mirror images."""
    inner = x.shape[-1] - 2
    places = [(dy, dx) for dy in range(3) for dx in range(3)]
    views = [view[..., dy : dy + inner, dx : dx + inner] for view in (x, x.flip(-1)) for dy, dx in places]
    return torch.stack([_centred(view) for view in views], dim=1)


def _fitted(windows: Tensor, others: Tensor) -> Tensor:
    """(N, K) root mean squares of window - gain * other, at the best gain and window; others: (N, K, D)."""
    product = windows @ others.transpose(1, 2)
    energy = others.square().sum(dim=2)[:, None]
    gain = (product / energy.clamp_min(1e-6)).clamp(*GAIN)
    left = windows.square().sum(dim=2)[:, :, None] - 2 * gain * product + gain.square() * energy
    return (left.clamp_min(0).amin(dim=1) / others.shape[2]).sqrt()
