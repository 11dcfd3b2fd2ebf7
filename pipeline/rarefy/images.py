"""Labelled images for training and for the audit's reference, from IDX files, class folders or WebDataset shards."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rarefy.errors import DataError, bad

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class LabelledImages:
    """images: (N, C, H, W) uint8; labels: (N,) int64; class_names: one per class id.

    keys: one name per image: its file within the folder or its key within the shards; empty if images have no names.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    keys: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def sha256(self) -> str:
        """Hash of all pixels and labels, in order."""
        digest = hashlib.sha256(self.images.tobytes())
        digest.update(self.labels.tobytes())
        return digest.hexdigest()


def load_images(source: str | Path, size: int, channels: int, split: str = "train") -> LabelledImages:
    """Read a data set of ``size`` x ``size`` images with ``channels`` channels (1 or 3).

    source: a folder of IDX files (``train-*``, ``t10k-*``; split is train or test), a folder with one subfolder per
    class, or a folder of WebDataset ``.tar`` shards with an image and a ``.cls`` per key. Images of another size are
    centre-cropped and resized. Raises DataError, which names path and cause.
    """
    path = Path(source)
    if not path.is_dir():
        raise DataError(bad("data", str(source), "a folder with IDX files, class folders or .tar shards"))
    prefix = "train" if split == "train" else "t10k"
    images_file = next(iter(sorted(path.glob(f"{prefix}-images-idx3-ubyte*"))), None)
    if images_file is not None:
        return _load_idx(images_file, size, channels)
    if tars := sorted(path.glob("*.tar")):
        return _load_shards(tars, size, channels)
    return _load_folders(path, size, channels)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read one IDX file of unsigned bytes, gzip or plain."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zero, kind, rank = struct.unpack_from(">HBB", raw)
        shape = struct.unpack_from(f">{rank}I", raw, 4)
        if zero or kind != 8:
            raise ValueError("not unsigned bytes")
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape).copy()
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise DataError(f"data: {path} is not a readable IDX file of unsigned bytes ({error})") from error


def decode_image(file: IO[bytes] | Path, size: int, channels: int) -> NDArray[np.uint8]:
    """Decode an image to (channels, size, size) uint8; another size is centre-cropped to a square and resized."""
    with Image.open(file) as opened:
        image = opened.convert("L" if channels == 1 else "RGB")
        if image.size != (size, size):
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            box = (left, top, left + side, top + side)
            method = Image.Resampling.BOX if side >= 2 * size else Image.Resampling.BICUBIC
            image = image.resize((size, size), method, box)
        pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _load_idx(images_file: Path, size: int, channels: int) -> LabelledImages:
    labels_file = images_file.with_name(images_file.name.replace("images-idx3", "labels-idx1"))
    images, labels = read_idx(images_file)[:, None], read_idx(labels_file).astype(np.int64)
    if images.shape[1:] != (channels, size, size) or len(images) != len(labels):
        raise DataError(
            f"data: {images_file} has {len(images)} images of {images.shape[1:]} and {len(labels)} labels; "
            f"expected images of {(channels, size, size)} with one label each"
        )
    return LabelledImages(images, labels, tuple(str(k) for k in range(int(labels.max()) + 1)))


def _load_folders(path: Path, size: int, channels: int) -> LabelledImages:
    folders = sorted(p for p in path.iterdir() if p.is_dir())
    files = [(f, k) for k, d in enumerate(folders) for f in sorted(d.iterdir()) if f.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        raise DataError(bad("data", str(path), "a folder with IDX files, class folders of images or .tar shards"))
    images = np.empty((len(files), channels, size, size), np.uint8)
    for row, (file, _) in enumerate(files):
        try:
            images[row] = decode_image(file, size, channels)
        except OSError as error:
            raise DataError(f"data: {file} is not a readable image ({error})") from error
    keys = tuple(file.relative_to(path).as_posix() for file, _ in files)
    return LabelledImages(images, np.array([k for _, k in files]), tuple(d.name for d in folders), keys)


def _load_shards(tars: list[Path], size: int, channels: int) -> LabelledImages:
    import webdataset as wds

    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    keys: list[str] = []
    # No node splitter: under torchrun every process reads all images and takes its share of each batch.
    options = {"shardshuffle": False, "handler": wds.reraise_exception, "nodesplitter": None}
    for sample in wds.WebDataset([str(t) for t in tars], **options):
        suffix = next((s for s in IMAGE_SUFFIXES if s[1:] in sample), None)
        if suffix is None or "cls" not in sample:
            raise DataError(f"data: sample {sample['__key__']} of {sample['__url__']} has no image or no .cls")
        images.append(decode_image(io.BytesIO(sample[suffix[1:]]), size, channels))
        labels.append(int(sample["cls"]))
        keys.append(sample["__key__"])
    if not images:
        raise DataError(bad("data", str(tars[0].parent), "shards with at least one sample"))
    names = tuple(str(k) for k in range(max(labels) + 1))
    return LabelledImages(np.stack(images), np.array(labels), names, tuple(keys))
