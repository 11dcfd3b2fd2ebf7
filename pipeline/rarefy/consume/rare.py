"""The generated images of a finished run, as a torch data set with random access."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from rarefy.audit.inputs.dataset import read_manifest
from rarefy.consume.images import Images, Index, Transform, check_mode, hash_keys, to_tensor
from rarefy.consume.rows import TAR, read_rows
from rarefy.consume.tars import TarImages
from rarefy.errors import DataError, ShardError
from rarefy.plan import data_store
from rarefy.shards.store import Store, open_store


class RareImages(Images):
    """The images of the run in ``out`` (a path, URL or Store), sorted by key. See Images for what an item is.

    where, accepted, excluded: which images, as in ``read_rows``: by default the accepted ones that are not on the
    exclusion list. transform: gets a PIL image; mode: ``L`` or ``RGB``, by default grey for a grey data set.
    rows: their metadata, one row per image in the same order. size: height and width in pixels.
    Raises DataError if no image is left; reading an image raises ShardError, which names shard and key, on damage.
    """

    def __init__(
        self,
        out: Store | str | Path,
        where: str | None = None,
        *,
        accepted: bool = True,
        excluded: bool = False,
        transform: Transform | None = None,
        mode: str | None = None,
    ) -> None:
        store = open_store(out)
        self.rows = read_rows(store, where, accepted=accepted, excluded=excluded)
        if self.rows.empty:
            filters = f"where={where!r}, accepted={accepted} and the exclusion list"
            raise DataError(f"data: no image of {store.root} is left by {filters}; relax one of them")
        manifest = read_manifest(store)
        self.classes = manifest.preset.classes
        self.class_names = manifest.preset.labels
        self.size, self.mode = manifest.preset.image_size, check_mode(mode, manifest.preset.channels)
        self.transform = transform
        self.labels = self.rows["class_id"].to_numpy(np.int64)
        # Arrays without Python objects: processes that are forked share them as long as nobody counts references.
        self._keys = self.rows["key"].to_numpy().astype("S")
        self._hashes = self.rows["image_sha256"].to_numpy().astype("S64")
        names, self._tar_numbers = np.unique(self.rows[TAR].to_numpy().astype("S"), return_inverse=True)
        self._shards = [PurePosixPath(name.decode()).stem for name in names.tolist()]
        self._tars = TarImages(data_store(store, manifest))

    def __getstate__(self) -> dict[str, Any]:
        """Without the rows, which are large and which the processes of a DataLoader do not need."""
        return {name: value for name, value in vars(self).items() if name != "rows"}

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: Index) -> str:
        """The sample's key."""
        return str(self._keys[self._checked(index)[1]].decode())

    def fingerprint(self) -> str:
        pairs = zip(self._keys.tolist(), self._hashes.tolist(), strict=True)
        return hash_keys(f"{key.decode()} {sha256.decode()}" for key, sha256 in pairs)

    def _item(self, epoch: int, place: int) -> tuple[Any, int]:
        image = self._open(place)
        return (self.transform or to_tensor)(image), int(self.labels[place])

    def _open(self, place: int) -> Image.Image:
        key, name = self._keys[place].decode(), self._shards[self._tar_numbers[place]]
        png = self._tars.read(name, key)
        if hashlib.sha256(png).hexdigest().encode() != self._hashes[place]:
            raise ShardError(f"{name}: sample {key} is damaged; run verify, then seal --repair and generate")
        with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
            return image.convert(self.mode)
