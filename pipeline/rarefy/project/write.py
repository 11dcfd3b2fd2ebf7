"""Writes a project's folder: completely, or not at all."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rarefy.errors import OutputError, bad
from rarefy.images import LabelledImages
from rarefy.models.folder import write_model_folder
from rarefy.project.choices import Choices
from rarefy.project.rare_file import rare_text
from rarefy.project.split import write_reference
from rarefy.project.train_file import MODEL, train_text
from rarefy.training.project import load_project

TRAIN_FILE, RARE_FILE, REFERENCE = "train.toml", "rare.toml", "reference"


def check_unused(out: str, data: str) -> None:
    """Raise OutputError unless ``out`` is new or an empty folder, and is not within the user's data."""
    path = Path(out)
    try:
        in_use = path.is_file() or (path.is_dir() and any(path.iterdir()))
    except OSError as error:
        raise OutputError(f"out: {out!r} cannot be read ({error.strerror})") from None
    if in_use:
        raise OutputError(bad("out", out, "a new or empty folder; choose another --out"))
    if path.resolve().is_relative_to(Path(data).resolve()):
        raise OutputError(bad("out", out, f"a folder outside the images in {data!r}; choose another --out"))


def write_project(choices: Choices, held_out: LabelledImages, out: str) -> None:
    """Write train.toml, rare.toml and the model folder with its description and held-out images."""
    with _new_folder(Path(out)) as folder:
        model = folder / MODEL
        write_reference(held_out, model / REFERENCE)
        (folder / TRAIN_FILE).write_text(train_text(choices), encoding="utf-8")
        described = load_project(folder / TRAIN_FILE).model(tuple(choices.counts))
        write_model_folder(dataclasses.replace(described, files={"reference": REFERENCE}), model)
        (folder / RARE_FILE).write_text(rare_text(choices), encoding="utf-8")


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``out``; after an error nothing of it is left.

    If ``out`` exists, its content moves there, because ``out`` may be a mount point or the working folder.
    """
    temporary: Path | None = None
    try:
        out = out.resolve()
        exists = out.is_dir()
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=out if exists else out.parent, prefix=f".{out.name}."))
        yield temporary
        if exists:
            for path in sorted(temporary.iterdir()):
                path.rename(out / path.name)
        else:
            temporary.chmod(0o777 & ~_umask())
            temporary.rename(out)
    except OSError as error:
        raise OutputError(f"out: {str(out)!r} cannot be written ({error.strerror})") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
