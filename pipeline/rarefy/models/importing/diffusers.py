"""Imports a pixel-space UNet2DModel of the diffusers library, alone or in a pipeline, with its noise schedule."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rarefy.errors import CheckpointError, ManifestError, bad
from rarefy.models.adapters.diffusers import build_diffusers
from rarefy.models.config import OtherNetwork
from rarefy.models.folder import ModelFolder
from rarefy.models.importing.class_names import read_class_names
from rarefy.models.importing.output import Imported, write_imported
from rarefy.models.importing.scheduler import Scheduler, read_scheduler
from rarefy.new_output import check_free

Json = Mapping[str, Any]
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
_LATENT = ("vae", "vqvae", "movq")
_PRIVATE = "_"  # begins keys of a configuration that are no arguments


@dataclass(frozen=True)
class Pipeline:
    """The two parts that are needed: the folder of the U-Net and the scheduler's file."""

    unet: Path
    scheduler: Path


def import_diffusers(source: str, out: str, class_names: str | None = None) -> Imported:
    """Write a model folder from a pipeline's folder or that of a UNet2DModel with a scheduler configuration.

    class_names: see read_class_names. Raises ManifestError for what cannot be sampled correctly, CheckpointError,
    OutputError.
    """
    check_free(out)
    pipeline, names = find_parts(Path(source)), read_class_names(class_names)
    config = _read_json(pipeline.unet / "config.json")
    scheduler = read_scheduler(_read_json(pipeline.scheduler), pipeline.scheduler)
    unet = describe_unet(config, pipeline.unet / "config.json")
    _check_agreement(unet, scheduler, names)
    _check_call(unet, pipeline.unet / "config.json")
    folder = ModelFolder(
        name="imported",
        description=f"imported from diffusers: {config['_class_name']} with {scheduler.kind}",
        unet=unet,
        classifier=None,
        schedule=scheduler.schedule,
        recommended_scale=1.0,
        diffusion_steps=scheduler.steps,
        class_names=names,
        prediction=scheduler.prediction,
        beta_range=scheduler.beta_range,
    )
    origin = {"from": "diffusers", "version": config.get("_diffusers_version")}
    return write_imported(folder, {"unet": find_weights_file(pipeline.unet)}, out, origin, scheduler.notes)


def find_parts(source: Path) -> Pipeline:
    """The parts of a pipeline's or U-Net's folder. Raises ManifestError if it is neither, or not a pixel model."""
    if not source.is_dir():
        raise ManifestError(bad("path", str(source), "a folder of a diffusers pipeline or UNet2DModel"))
    index = source / "model_index.json"
    if index.is_file():
        parts = _read_json(index)
        pipeline = parts.get("_class_name")
        if latent := [name for name in _LATENT if parts.get(name)]:
            allowed = f"a pixel model: it has a {latent[0]}, so its U-Net works on latents, not on pixels"
            raise ManifestError(bad(str(index), pipeline, allowed))
        if parts.get("text_encoder") or not parts.get("unet") or not parts.get("scheduler"):
            raise ManifestError(bad(str(index), pipeline, "a pipeline of just a UNet2DModel and a scheduler"))
        return Pipeline(source / "unet", source / "scheduler" / "scheduler_config.json")
    if not (source / "config.json").is_file():
        raise ManifestError(bad("path", str(source), "a diffusers folder: it has no model_index.json or config.json"))
    places = (source, source / "scheduler", source.parent / "scheduler")
    for file in (place / "scheduler_config.json" for place in places):
        if file.is_file():
            return Pipeline(source, file)
    allowed = "complete: the noise schedule is needed too, put the pipeline's scheduler_config.json into the folder"
    raise ManifestError(bad("path", str(source), allowed))


def describe_unet(config: Json, file: Path) -> OtherNetwork:
    """The network of a UNet2DModel's configuration. Raises ManifestError if it cannot be sampled correctly."""

    def refuse(key: str, allowed: str) -> ManifestError:
        return ManifestError(bad(f"{file}: {key}", config.get(key), allowed))

    if config.get("_class_name") != "UNet2DModel":
        raise refuse("_class_name", "UNet2DModel, the kind that can be imported: no text, no latents, no transformer")
    size: Any = config.get("sample_size")
    if isinstance(size, list) and len(set(size)) == 1:
        size = size[0]
    if not _is_positive(size):
        raise refuse("sample_size", "the height and width of the images in pixels, which are equal; add it to the file")
    channels, out_channels = config.get("in_channels", 3), config.get("out_channels", 3)
    if channels not in (1, 3):
        raise refuse("in_channels", "1 (grey) or 3 (colour)")
    if out_channels not in (channels, 2 * channels):
        raise refuse("out_channels", f"{channels}, or {2 * channels} with a learned variance")
    if config.get("time_embedding_type", "positional") == "fourier":
        raise refuse("time_embedding_type", "positional: fourier belongs to models of continuous time (score SDE)")
    classes = config.get("num_class_embeds")
    if config.get("class_embed_type") is not None or not (classes is None or _is_positive(classes)):
        raise refuse("class_embed_type", "null, with the number of classes in num_class_embeds")
    options = {key: value for key, value in config.items() if not key.startswith(_PRIVATE)}
    return OtherNetwork("diffusers", size, channels, out_channels, classes, options)


def find_weights_file(folder: Path) -> Path:
    """The U-Net's weights: safetensors first; a half-precision variant if there is no other. Raises CheckpointError."""
    for name in WEIGHTS:
        stem, suffix = name.rsplit(".", 1)
        if (folder / name).is_file():
            return folder / name
        variants = sorted(folder.glob(f"{stem}.*.{suffix}"))
        if len(variants) == 1 and "-of-" not in variants[0].name:
            return variants[0]
    allowed = f"complete: it has no {WEIGHTS[0]} (if the file is split, load and save the model in one piece)"
    raise CheckpointError(bad("path", str(folder), allowed))


def _check_agreement(unet: OtherNetwork, scheduler: Scheduler, names: tuple[str, ...]) -> None:
    learned = unet.out_channels != unet.in_channels
    if learned != (scheduler.variance == "learned_range") and (learned or scheduler.variance.startswith("learned")):
        allowed = f"possible with {unet.out_channels} output channels for {unet.in_channels} input channels"
        raise ManifestError(bad("scheduler variance_type", scheduler.variance, allowed))
    if names and len(names) != (unet.num_classes or 0):
        raise ManifestError(bad("class-names", f"{len(names)} names", f"{unet.num_classes or 0}, as many as classes"))


def _check_call(unet: OtherNetwork, file: Path) -> None:
    """Raise ManifestError if the network cannot be called with an image of its size. Nothing is computed."""
    with torch.device("meta"):
        network = build_diffusers(unet)
        x, y = torch.empty(1, unet.in_channels, unet.image_size, unet.image_size), torch.zeros(1, dtype=torch.int64)
        try:
            network(x, torch.zeros(1), None if unet.num_classes is None else y)
        except (TypeError, ValueError, RuntimeError) as error:
            allowed = f"a size of images that this network can be called with ({' '.join(str(error).split())[:200]})"
            raise ManifestError(bad(f"{file}: sample_size", unet.image_size, allowed)) from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not JSON: {error}"
        raise ManifestError(f"{file}: cannot be read ({reason})") from None
    if not isinstance(content, dict):
        raise ManifestError(bad(str(file), type(content).__name__, "a JSON object"))
    return content


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
