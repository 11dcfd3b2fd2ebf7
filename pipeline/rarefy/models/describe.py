"""What a model folder has: architecture, classes, schedule, training, measured quality and files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rarefy.errors import ManifestError, bad, near_path, one_of
from rarefy.models.config import NetworkConfig, NetworkSpec
from rarefy.models.folder import OWN_CODE, ModelFolder, library
from rarefy.models.networks import build_network
from rarefy.models.remote import is_remote
from rarefy.models.source import local_folder, local_path, tree_sha256
from rarefy.plugins import FLAG, may_import

WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
DEEPEST = 50  # levels of provenance.json
LINE = 110  # characters of the class names that are shown


@dataclass(frozen=True)
class DescribedNetwork:
    """parameters: their number, None if counting them needs a plug-in that is not allowed; summary: its shape."""

    role: str
    kind: str
    parameters: int | None
    summary: str


@dataclass(frozen=True)
class DescribedFile:
    """A file or folder that ``config.json`` names. size_bytes, sha256: None if it is missing."""

    role: str
    name: str
    size_bytes: int | None
    sha256: str | None


@dataclass(frozen=True)
class ModelDescription:
    """place: the folder, with the commit for a model of the Hub; schedule: in words.

    provenance: content of ``provenance.json``, None if there is none; unused: weights that config.json does not name.
    """

    name: str
    place: str
    description: str
    image_size: int
    channels: int
    classes: list[str]
    conditional: bool
    schedule: str
    recommended_scale: float
    networks: list[DescribedNetwork]
    files: list[DescribedFile]
    unused: list[str]
    provenance: dict[str, Any] | None

    def text(self) -> str:
        """The description for people."""
        colour = "grey" if self.channels == 1 else "colour"
        rows = [("folder", self.place), ("images", f"{self.image_size} x {self.image_size} px, {colour}")]
        rows += [("classes", _classes_text(self.classes)), ("noise", self.schedule)]
        if not self.conditional:
            rows.append(("", "unconditional: the class acts through guidance only"))
        rows += [(each.role, f"{_parameters_text(each)}, {each.summary}") for each in self.networks]
        if "classifier" not in (each.role for each in self.networks):
            rows.append(("classifier", "none: no scores, and no guidance that needs one"))
        rows += [(f"file {each.role}", _file_text(each)) for each in self.files]
        rows += [("not used", f"{name}: config.json does not name it") for name in self.unused]
        rows += [(f"trained {part}", _line(facts)) for part, facts in (self.provenance or {}).items()]
        if self.provenance is None:
            rows.append(("trained", "unknown: there is no provenance.json"))
        width = max(len(label) for label, _ in rows) + 2
        return "\n".join([f"{self.name}: {self.description}", *(f"  {label:<{width}}{text}" for label, text in rows)])


def describe(name_or_place: str, allow_plugins: bool = False) -> ModelDescription:
    """Describe a model that ships, or the model folder at a path or URL. Raises ManifestError.

    allow_plugins: import networks whose kind is an import path, to count their parameters.
    """
    folder, place = _find(name_or_place)
    scale = f", recommended guidance scale {folder.recommended_scale:g}" if folder.classifier else ""
    betas = f", betas from {folder.beta_range[0]:g} to {folder.beta_range[1]:g}" if folder.beta_range else ""
    return ModelDescription(
        name=folder.name,
        place=place,
        description=folder.description,
        image_size=folder.image_size,
        channels=folder.channels,
        classes=list(folder.labels),
        conditional=folder.num_classes is not None,
        schedule=f"{folder.schedule}, {folder.diffusion_steps} steps{betas}, predicts {folder.prediction}{scale}",
        recommended_scale=folder.recommended_scale,
        networks=_networks(folder, allow_plugins),
        files=[_file(folder, role) for role in folder.files],
        unused=_unused(folder),
        provenance=_provenance(folder),
    )


def _find(name_or_place: str) -> tuple[ModelFolder, str]:
    if name_or_place in library():
        folder = library()[name_or_place]
        return folder, str(folder.path)
    if is_remote(name_or_place):
        return local_folder(name_or_place)
    path = local_path(name_or_place, Path.cwd())
    if not Path(path).exists():
        raise ManifestError(
            bad("model", name_or_place, f"a model folder or {one_of(name_or_place, list(library()))}{near_path(path)}")
        )
    return local_folder(path)


def _networks(folder: ModelFolder, allow_plugins: bool) -> list[DescribedNetwork]:
    specs: dict[str, NetworkSpec] = {role: getattr(folder, role) for role in folder.networks}
    return [
        DescribedNetwork(role, spec.kind, _count_parameters(spec, role, allow_plugins), _summary(spec))
        for role, spec in specs.items()
    ]


def _count_parameters(spec: NetworkSpec, role: str, allow_plugins: bool) -> int | None:
    if OWN_CODE in spec.kind and not may_import(spec.kind, allow_plugins):
        return None
    with torch.device("meta"):
        network = build_network(spec, role, allow_plugins)
    return sum(value.numel() for value in network.parameters())


def _parameters_text(network: DescribedNetwork) -> str:
    if network.parameters is None:
        return f"parameters not counted (that imports its code, see {FLAG})"
    return f"{network.parameters:,} parameters"


def _summary(spec: NetworkSpec) -> str:
    if not isinstance(spec, NetworkConfig):
        return spec.kind
    levels = ", ".join(f"{mult:g}" for mult in spec.channel_mult)
    attention = ", ".join(f"{spec.image_size // factor}" for factor in spec.attention_resolutions) or "no"
    return (
        f"{spec.kind}, {spec.model_channels} channels times {levels}; {spec.num_res_blocks} residual blocks per level; "
        f"attention at {attention} px"
    )


def _file(folder: ModelFolder, role: str) -> DescribedFile:
    path = folder.file(role)
    sizes = [each.stat().st_size for each in (path.rglob("*") if path.is_dir() else [path]) if each.is_file()]
    return DescribedFile(role, folder.files[role], sum(sizes) if path.exists() else None, tree_sha256(path))


def _unused(folder: ModelFolder) -> list[str]:
    named = {Path(name).name for name in folder.files.values()}
    found = (path.name for path in sorted(folder.path.iterdir()) if path.suffix in WEIGHTS_SUFFIXES)
    return [name for name in found if name not in named] if not folder.embedded else []


def _provenance(folder: ModelFolder) -> dict[str, Any] | None:
    path = (folder.file("unet").parent if "unet" in folder.files else folder.path) / "provenance.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ManifestError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
    if _is_deeper(content, DEEPEST):
        raise ManifestError(f"{path}: cannot be read (nested more than {DEEPEST} levels deep)")
    return content if isinstance(content, dict) else {"": content}


def _is_deeper(content: object, levels: int) -> bool:
    """Whether a JSON value is nested more than ``levels`` levels deep."""
    inner = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    return levels == 0 or any(_is_deeper(each, levels - 1) for each in inner)


def _classes_text(names: list[str]) -> str:
    text = ", ".join(names)
    if len(text) > LINE:
        text = f"{text[:LINE].rpartition(', ')[0]} and more"
    return f"{len(names):,}: {text}"


def _file_text(file: DescribedFile) -> str:
    if file.size_bytes is None:
        return f"{file.name}: missing"
    return f"{file.name}, {file.size_bytes / 1e6:,.1f} MB, sha256 {file.sha256}"


def _is_short(value: object) -> bool:
    text = str(value)
    return not isinstance(value, list) and value is not None and "\n" not in text and len(text) <= LINE


def _line(facts: object) -> str:
    """Numbers and short texts of a part of provenance.json, without lists, such as loss curves, and whole recipes."""
    if not isinstance(facts, dict):
        return str(facts)
    shown = {key: value for key, value in facts.items() if isinstance(value, dict) or _is_short(value)}
    return ", ".join(f"{key} {_line(value) if isinstance(value, dict) else value}" for key, value in shown.items())
