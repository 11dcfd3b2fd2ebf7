"""``rarefy train mine/train.toml``: trains all parts of a model, measures its quality and writes its card."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rarefy.errors import ManifestError, bad
from rarefy.models.folder import allow_kinds
from rarefy.project.quality import measure_quality, small_audit
from rarefy.training.card import write_card
from rarefy.training.data import place
from rarefy.training.images import project_images
from rarefy.training.model import begin_model, finish_part
from rarefy.training.output import Job, Places, read_json
from rarefy.training.project import Project, load_project
from rarefy.training.run import TrainOptions, processes, train_part


def train_project(path: Path, part: str | None, options: TrainOptions) -> dict[str, Any]:
    """Train the parts of a ``train.toml``, or one of them, into its model folder; returns the folder's provenance.

    Each part resumes where it stopped, and a finished one is skipped. At the end the quality of the diffusion model is
    measured and written into ``provenance.json`` and the card. Under ``torchrun`` only rank 0 writes; the others return
    an empty dict. Raises ManifestError, DataError, DeviceError, OutputError or DivergedError.
    """
    project = load_project(path)
    if project.base is not None:
        project = dataclasses.replace(project, base=allow_kinds(project.base, options.allow_plugins))
    parts = _chosen(project, part)
    with processes(options) as device:
        images = project_images(project)
        first, model = place()[0] == 0, project.model(images.train.source.class_names)
        if first and project.base is None:
            model = begin_model(model)
        for each in parts:
            job = Job(project.recipe(each, model), images, Places.in_model(project.folder, each))
            check = small_audit(model, images, device) if first and each == "diffusion" else None
            train_part(job, device, options, check)
            if first:
                model = finish_part(model, each)
        if not first:
            return {}
        measure_quality(model, images, device)
        if project.base is None or not (model.path / "README.md").exists():  # somebody else's card stays as it is
            write_card(model, images)
        return read_json(project.folder / "provenance.json")


def _chosen(project: Project, part: str | None) -> list[str]:
    if part is not None and part not in project.parts:
        allowed = f"a part of {str(project.path)!r}, which has {', '.join(project.parts)}"
        raise ManifestError(bad("part", part, allowed))
    return list(project.parts) if part is None else [part]
