"""Reads the images of a training run, and keeps training images and held-out ones apart."""

from __future__ import annotations

import os
from pathlib import Path

from rarefy.errors import DataError, bad
from rarefy.images import ClassNames, LabelledImages, has_split, load_images, open_source
from rarefy.images.names import listed
from rarefy.training.data import TrainingSet
from rarefy.training.held_out import without_held_out
from rarefy.training.output import RealImages
from rarefy.training.progress import progress, say
from rarefy.training.project import Project
from rarefy.training.recipe import Recipe


def library_images(recipe: Recipe) -> RealImages:
    """The images of a recipe for a library model. Those of the data's test split, if it has one, are held out."""
    size, channels, classes = recipe.model.image_size, recipe.model.channels, recipe.model.classes
    data = TrainingSet.whole(_read(recipe.data, size, channels, "train", classes))
    test = has_split(recipe.data, "test")
    held_out = _read(recipe.data, size, channels, "test", classes) if test else None
    return RealImages(data, held_out, data.sha256(progress("hashing")))


def project_images(project: Project) -> RealImages:
    """The images of a project, without those that are held out, with the model's class names.

    Classes are matched by name. Raises DataError for a reference of another size or with classes that the data lack.
    """
    size, channels, classes = project.image_size, project.channels, project.classes
    data = _read(project.data, size, channels, "train", classes, project.skip_broken)
    held_out = None
    if project.reference.exists():
        check_size(project.reference, size)
        held_out = _read(project.reference, size, channels, "train", ClassNames(data.class_names))
    chosen = without_held_out(data, held_out, progress("comparing with held-out images"))
    _describe(project, chosen, held_out)
    held_out_path = None if held_out is None else project.reference
    return RealImages(chosen, held_out, chosen.sha256(progress("hashing")), held_out_path)


def check_size(folder: Path, size: int) -> None:
    """Raise DataError if a held-out image has another size than the training images will have."""
    for item in open_source(folder).items:
        with item.place.open() as image:
            if image.size != (size, size):
                found = " x ".join(map(str, image.size))
                raise DataError(bad(f"reference {item.place}", found, f"{size} x {size} pixels, which is image_size"))


def _describe(project: Project, data: TrainingSet, held_out: LabelledImages | None) -> None:
    counts, names = data.counts, data.source.class_names
    for skipped in data.source.skipped:
        say(f"not used: {skipped}")
    if broken := data.source.broken:
        say(f"{len(broken):,} images that cannot be read are left out: {listed(broken)}")
    out = f", {data.excluded:,} left out because they equal held-out images" if data.excluded else ""
    say(f"{len(data):,} images of {len(names):,} classes in {os.path.normpath(project.data)!r}{out}")
    if empty := [name for name, count in zip(names, counts, strict=True) if count == 0]:
        say(f"no image to train on in {len(empty):,} classes: {listed(empty)}")
    if held_out is not None:
        say(f"{len(held_out):,} held-out images in {os.path.normpath(project.reference)!r}")


def _read(
    source: Path, size: int, channels: int, split: str, classes: ClassNames | None, skip_broken: bool = False
) -> LabelledImages:
    step = progress(f"reading {source.name}")
    return load_images(source, size, channels, split, classes=classes, skip_broken=skip_broken, progress=step)
