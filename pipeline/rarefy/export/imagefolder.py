"""One folder per class, as torchvision's ImageFolder and ``load_dataset("imagefolder")`` read it."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rarefy.export.chosen import Chosen, Image
from rarefy.export.table import label_table, with_features

CLASSES, METADATA = "classes.json", "metadata.parquet"
# Characters that some file system refuses, and dots and spaces at an end, which hide a folder or are dropped.
UNSAFE = re.compile(r'[\x00-\x1f\x7f"*/:<>?\\|]|^\.|[. ]$')
MOST_BYTES = 200  # of a folder's name; most file systems take 255


def write_imagefolder(chosen: Chosen, images: Iterable[Image], folder: Path) -> None:
    """Write every image to CLASS/KEY.png, the rows to metadata.parquet, and the classes to classes.json."""
    names = chosen.manifest.preset.labels
    folders = folder_names(names)
    used = sorted({int(class_id) for class_id in chosen.rows["class_id"]})
    for class_id in used:
        (folder / folders[class_id]).mkdir(parents=True)
    for image in images:
        (folder / _path(image.key, folders[image.class_id])).write_bytes(image.png)
    rows = zip(chosen.rows["key"], chosen.rows["class_id"], strict=True)
    paths = [_path(key, folders[class_id]) for key, class_id in rows]
    table = with_features(label_table(chosen.rows, {"file_name": pa.array(paths, pa.string())}), names)
    pq.write_table(table, folder / METADATA, compression="zstd")
    classes = [{"id": class_id, "name": names[class_id], "folder": folders[class_id]} for class_id in used]
    (folder / CLASSES).write_text(json.dumps(classes, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _path(key: str, class_folder: str) -> str:
    return f"{class_folder}/{key}.png"


def folder_names(names: Sequence[str]) -> list[str]:
    """A folder for each class: its name with unsafe characters replaced by ``_``.

    Names that a file system may take for one another get their class ids, such as ``crane_134``.
    """
    safe = [_cut(UNSAFE.sub("_", name)) or "_" for name in names]
    counts = Counter(_folded(name) for name in safe)
    folders = [f"{name}_{number}" if counts[_folded(name)] > 1 else name for number, name in enumerate(safe)]
    distinct = len({_folded(name) for name in folders}) == len(folders)
    return folders if distinct else [f"{number}_{name}" for number, name in enumerate(safe)]


def _cut(name: str) -> str:
    return name.encode()[:MOST_BYTES].decode(errors="ignore")


def _folded(name: str) -> str:
    """The same for all names that a file system may take for this one."""
    return unicodedata.normalize("NFKC", name).casefold()
