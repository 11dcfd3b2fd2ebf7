"""Compares a finished run with an undisturbed one, file by file, without rarefy's own readers."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from faults.world import Output
from rarefy.generate.actor import ShardGenerator
from rarefy.manifest import load_manifest
from rarefy.plan import make_plan


@dataclass(frozen=True)
class Content:
    """What a run made. pixels: hash of an image by key; keys, rows: in tars and in Parquet; digest: of all bytes."""

    pixels: Mapping[str, str]
    keys: Counter[str]
    rows: Counter[str]
    digest: str


@dataclass(frozen=True)
class Verdict:
    """Keys lost, keys doubled, images with other pixels, and whether all bytes are equal."""

    lost: int
    doubled: int
    wrong: int
    equal: bool

    @property
    def good(self) -> bool:
        return (self.lost, self.doubled, self.wrong, self.equal) == (0, 0, 0, True)


def undisturbed(manifest_path: Path, out: Path) -> Content:
    """The same run in this process, one shard after the other, without Ray."""
    generator = ShardGenerator(load_manifest(manifest_path), str(out), "cpu", 1)
    generator.load()
    for shard in range(make_plan(generator.manifest).num_shards):
        generator.generate(shard, f"undisturbed-{shard}")
    return content({str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()})


def content(files: Mapping[str, bytes]) -> Content:
    """The content of a run's files."""
    pixels, keys, rows, digest = dict[str, str](), Counter[str](), Counter[str](), hashlib.sha256()
    for name in sorted(files):
        if name.endswith(".tar"):
            for key, png in _images(files[name]):
                keys[key] += 1
                pixels[key] = hashlib.sha256(np.asarray(Image.open(io.BytesIO(png))).tobytes()).hexdigest()
        elif name.endswith(".parquet"):
            rows.update(pq.read_table(io.BytesIO(files[name])).column("key").to_pylist())
        else:
            continue  # markers and listings name attempts and times
        if name.endswith(COMPARED):
            digest.update(f"{name} {len(files[name])}\n".encode() + files[name])
    return Content(pixels, keys, rows, digest.hexdigest())


COMPARED = (".tar", ".parquet")


def judge(output: Output, expected: Content) -> Verdict:
    """Compare a finished output with the undisturbed run."""
    names = [name for folder in ("shards", "metadata") for name in output.names(folder)]
    made = content({name: output.read(name) for name in names})
    lost = sum(1 for key in expected.keys if not (made.keys[key] and made.rows[key]))
    doubled = sum(1 for key in {*made.keys, *made.rows} if max(made.keys[key], made.rows[key]) > 1)
    wrong = sum(1 for key, pixels in made.pixels.items() if expected.pixels.get(key) != pixels)
    return Verdict(lost, doubled, wrong, made.digest == expected.digest)


def _images(tar: bytes) -> list[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        members = [member for member in archive if member.name.endswith(".png")]
        return [(member.name.partition(".")[0], archive.extractfile(member).read()) for member in members]  # type: ignore[union-attr]
