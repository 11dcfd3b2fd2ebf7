"""The files of a model folder that others need to sample from it and to see how it was trained."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from rarefy.models.folder import OWN_CODE, ModelFolder, config_content
from rarefy.models.source import check_trained, find_source
from rarefy.publish.card import UNKNOWN_LICENCE, check_card
from rarefy.publish.content import CONFIG, Content, ordered
from rarefy.publish.files import PushFile, made, stored, walk
from rarefy.shards.store import Store
from rarefy.shards.verify import CARD

REAL = ("reference", "held_out")  # roles of files with real images
TRAINING = "training"
TEXT = (".toml", ".jsonl", ".json", ".png")  # recipes, logs and sample grids; not checkpoints
LAST = (CONFIG, CARD)


def model_content(source: str, real_images: bool) -> Content:
    """A trained model folder at a local path or URL, without its checkpoints.

    real_images: send the real images that the audit compares with; otherwise the sent config.json does not name them.
    Raises ManifestError, CheckpointError or OutputError.
    """
    spec = find_source(source, Path.cwd())
    check_trained(spec)
    folder = spec.folder
    store = Store(str(folder.path))
    hidden = {} if real_images else {role: folder.files[role] for role in REAL if role in folder.files}
    files = list(_files(store, folder, hidden))
    card = store.read_or_none(CARD)
    if card is None:
        card = plain_card(folder).encode()
        files.append(made(CARD, card))
    licence = check_card(card.decode(), "model", [file.path for file in files])
    paths = {file.path for file in files}
    left_out = [f"{name}: real images; --real-images sends them too" for name in hidden.values()]
    left_out += [f"{path}: only for resuming the training" for path in walk(store) if _is_checkpoint(path)]
    left_out += [
        f"{path}: not part of the model folder"
        for path in walk(store)
        if path not in paths and not _is_checkpoint(path) and not _is_below(path, hidden.values())
    ]
    return Content(
        kind="model",
        name=folder.name,
        files=ordered(files, LAST),
        card=card.decode(),
        left_out=tuple(left_out),
        notes=tuple(_notes(folder, licence, store.exists(CARD))),
    )


def _files(store: Store, folder: ModelFolder, hidden: dict[str, str]) -> Iterator[PushFile]:
    config = config_content(
        dataclasses.replace(folder, files={role: name for role, name in folder.files.items() if role not in hidden})
    )
    named = [name for role, name in folder.files.items() if role not in hidden]
    if hidden:
        yield made(CONFIG, json.dumps(config, indent=1).encode() + b"\n")
    for path in walk(store):
        if path == CONFIG and hidden:
            continue
        part = PurePosixPath(path).parts[0]
        log = part == TRAINING and PurePosixPath(path).suffix in TEXT
        if path in (CONFIG, CARD, "provenance.json") or log or _is_below(path, named):
            yield stored(store, path)


def _is_checkpoint(path: str) -> bool:
    return path.startswith(f"{TRAINING}/") and PurePosixPath(path).suffix not in TEXT


def _is_below(path: str, names: Iterable[str]) -> bool:
    """Whether a path is one of these files or in one of these folders."""
    return any(path == name or path.startswith(f"{name}/") for name in names)


def _notes(folder: ModelFolder, licence: str | None, has_card: bool) -> Iterator[str]:
    if not has_card:
        yield "the folder has no README.md; a short one is made"
    if licence is None:
        yield f"{UNKNOWN_LICENCE}; name it at the top of README.md"
    for role in folder.networks:
        if OWN_CODE in (kind := getattr(folder, role).kind):
            yield f"{role} is code of your own, {kind}: who downloads the folder needs it and must copy the folder"


def plain_card(folder: ModelFolder) -> str:
    """The card of a folder that has none, such as an imported one."""
    return f"""---
license: unknown
library_name: rarefy
pipeline_tag: unconditional-image-generation
tags:
- diffusion
- rarefy
model_name: {json.dumps(folder.name)}
---

# {folder.name}

{folder.description}

A diffusion model for images of {folder.image_size} x {folder.image_size} pixels, as a model folder of rarefy.
"""
