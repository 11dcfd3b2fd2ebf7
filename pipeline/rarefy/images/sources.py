"""Finds out what a path contains and lists its images, without reading them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rarefy.errors import DataError, near_path
from rarefy.images.folders import HIDDEN, entries, is_hidden, is_image, read_folders
from rarefy.images.idx import IDX_FILE, read_idx_source
from rarefy.images.items import Skipped, Source, Tally
from rarefy.images.shards import read_shards
from rarefy.images.splits import OTHER_SPLITS, WORDS, choose_split, group_by_split
from rarefy.images.tables import read_tables

ALLOWED = "a folder with class folders of images, .tar shards, Parquet, Arrow or IDX files"
CLASS_FOLDERS, IDX, SHARDS, PARQUET, ARROW = "class folders", "IDX files", ".tar shards", "Parquet files", "Arrow files"
BY_CLASS = "named by its class"
NOT_DATA = "other files and folders next to the data"
METADATA = "metadata.parquet"  # next to class folders, it has no images: ``rarefy export`` and Hugging Face write it
SUFFIXES = {".tar": SHARDS, ".parquet": PARQUET, ".arrow": ARROW}


@dataclass(frozen=True)
class Layout:
    """What a folder contains. form: one of the formats; groups: its files by split, or its split folders.

    inner: whether a group is one folder that is a data set of its own.
    """

    root: Path
    form: str
    groups: dict[str, list[Path]]
    inner: bool = False


def open_source(source: str | Path, split: str = "train") -> Source:
    """List the images of a data set: class folders, shards, Parquet, Arrow or IDX files, or one such file.

    split: train or test. Data whose files or folders name no split have only ``train``. Raises DataError, which says
    what was found instead, and for data in which two formats are mixed.
    """
    layout, skipped = find_layout(Path(source)), Skipped(Tally)
    name = choose_split(layout.groups, split, layout.root)
    for path in (path for other, paths in layout.groups.items() if other != name for path in paths):
        skipped[OTHER_SPLITS].add(path.name)
    if layout.form == CLASS_FOLDERS and not layout.inner:
        return read_folders(layout.root, skipped)
    if Path(source).is_dir():
        _count_others(Path(source), layout, skipped)
    chosen = layout.groups[name]
    if layout.inner:
        return _inner(chosen[0], skipped, layout.root)
    return READERS[layout.form](layout.root, chosen, skipped)


def _count_others(source: Path, layout: Layout, skipped: Skipped) -> None:
    """Count what else is in the folder of the data and in those above it, up to the one that was given."""
    above = [folder for folder in layout.root.parents if folder == source or source in folder.parents]
    used = {layout.root, *above, *(path for paths in layout.groups.values() for path in paths)}
    for folder in (layout.root, *above):
        for entry in entries(folder):
            if Path(entry.path) not in used:
                skipped[HIDDEN if is_hidden(entry.name) else NOT_DATA].add(entry.name)


def has_split(source: str | Path, split: str) -> bool:
    """Whether a data set has a split of its own (test: or validation). Raises DataError if it is no data set."""
    groups = find_layout(Path(source)).groups
    return split in groups or (split == "test" and "validation" in groups)


def find_layout(path: Path) -> Layout:
    """Recognise the format of a folder or file by what is in it. Raises DataError if there is none or several."""
    if path.is_file() and (form := _form(path.name)):
        return Layout(path.parent, form, {"": [path]})
    if not path.is_dir():
        seen = "" if path.exists() else f"; there is nothing at this path{near_path(path)}"
        raise DataError(f"data: {str(path)!r} is not {ALLOWED}{seen}")
    inside = [entry for entry in entries(path) if not is_hidden(entry.name)]
    folders = [Path(entry.path) for entry in inside if entry.is_dir()]
    with_images = any(_has_image(folder) for folder in folders)
    files: dict[str, list[Path]] = {}
    for entry in inside:
        if (form := _form(entry.name)) and entry.is_file() and not (with_images and entry.name == METADATA):
            files.setdefault(form, []).append(Path(entry.path))
    if not files and (splits := _split_folders(path, folders)):
        return Layout(path, CLASS_FOLDERS, splits, inner=True)
    if not files and _flat_splits(folders):
        raise DataError(f"data: the splits of {str(path)!r} have no class folders; put each image into one {BY_CLASS}")
    if not files and len(folders) == 1 and (below := _only_folder(folders[0])):
        return below
    nested = _forms_within(folders) if with_images else {}
    forms = [*files, *([CLASS_FOLDERS] if with_images else []), *nested.values()]
    if len(forms) > 1:
        raise DataError(f"data: {str(path)!r} has both {' and '.join(forms)}; give the folder of one of them")
    if not forms:
        raise DataError(f"data: {str(path)!r} is not {ALLOWED}; it has {_seen(path)}")
    return Layout(path, forms[0], group_by_split(files[forms[0]]) if files else {"": folders})


def _form(name: str) -> str | None:
    return IDX if IDX_FILE.fullmatch(name) else SUFFIXES.get(Path(name).suffix.lower())


def _split_folders(path: Path, folders: Sequence[Path]) -> dict[str, list[Path]]:
    """The folders by split that are data sets of their own; none if other folders have images: then all are classes.

    Raises DataError for two folders of one split, and for other folders with images next to several splits.
    """
    groups: dict[str, list[Path]] = {}
    for folder in folders:
        if (split := WORDS.get(folder.name.lower())) and _is_data_set(folder):
            groups.setdefault(split, []).append(folder)
    others = [folder for folder in folders if folder.name.lower() not in WORDS] if groups else []
    if other := next((folder for folder in others if _has_image(folder) or _forms_within([folder])), None):
        if len(groups) == 1:
            return {}
        raise DataError(
            f"data: {str(path)!r} has the splits {' and '.join(groups)}, and images in {other.name!r}; move that folder"
        )
    for split, same in groups.items():
        if len(same) > 1:
            raise DataError(f"data: {str(same[0])!r} and {str(same[1])!r} are both the {split} split")
    return groups


def _flat_splits(folders: Sequence[Path]) -> bool:
    """Whether only the folders of several splits have images."""
    others = [folder for folder in folders if folder.name.lower() not in WORDS]
    return len(folders) - len(others) > 1 and not any(_has_image(folder) for folder in others)


def _is_data_set(folder: Path) -> bool:
    return any(
        not is_hidden(entry.name) and (entry.is_dir() or _form(entry.name) is not None) for entry in entries(folder)
    )


def _only_folder(folder: Path) -> Layout | None:
    """The layout of a single folder, such as ``data/``, if it has splits or files of a format rather than images."""
    if not _is_data_set(folder):
        return None
    if not _has_image(folder) or _split_folders(folder, list(_folders(folder))):
        return find_layout(folder)
    return None


def _folders(folder: Path) -> Iterator[Path]:
    return (Path(entry.path) for entry in entries(folder) if entry.is_dir() and not is_hidden(entry.name))


def _forms_within(folders: Sequence[Path]) -> dict[str, str]:
    """Data files directly within folders, such as a run's ``shards/``: one example of each format, in words."""
    found: dict[str, str] = {}
    for folder in folders:
        for entry in entries(folder):
            if form := _form(entry.name):
                found.setdefault(form, f"{form} in {folder.name!r}")
    return found


def _has_image(folder: Path) -> bool:
    """Whether there is an image anywhere below, except in hidden folders."""
    for _, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not is_hidden(name)]
        if any(is_image(name) and not is_hidden(name) for name in files):
            return True
    return False


def _seen(path: Path) -> str:
    """What a folder has, in words: ``2 folders, 3 .zip files``."""
    inside = [entry for entry in entries(path) if not is_hidden(entry.name)]
    folders = sum(entry.is_dir() for entry in inside)
    suffixes = Counter(Path(entry.name).suffix.lower() or "other" for entry in inside if not entry.is_dir())
    parts = [f"{count:,} {suffix} file{'s' * (count > 1)}" for suffix, count in suffixes.most_common(4)]
    parts += [f"{folders:,} folder{'s' * (folders > 1)} without images"] if folders else []
    flat = any(is_image(entry.name) for entry in inside)
    return (", ".join(parts) or "nothing") + (f"; put each image into a folder {BY_CLASS}" if flat else "")


def _inner(folder: Path, skipped: Skipped, root: Path) -> Source:
    """A split's folder as a data set, with what the folder above skipped."""
    source = open_source(folder)
    for reason, tally in source.skipped.items():
        skipped[reason].count += tally.count
        skipped[reason].first += tally.first
    return replace(source, path=str(root), skipped=skipped)


def _idx(root: Path, files: Sequence[Path], skipped: Skipped) -> Source:
    images = next((file for file in files if "images" in file.name), None)
    if images is None:
        raise DataError(f"data: {str(root)!r} has {files[0].name} but no IDX file of images")
    return read_idx_source(images, skipped)


READERS: dict[str, Callable[[Path, Sequence[Path], Skipped], Source]] = {
    IDX: _idx,
    SHARDS: read_shards,
    PARQUET: lambda root, files, skipped: read_tables(root, files, PARQUET, skipped),
    ARROW: lambda root, files, skipped: read_tables(root, files, ARROW, skipped),
}
