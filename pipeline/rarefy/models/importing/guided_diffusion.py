"""Imports checkpoints of openai/guided-diffusion, described by the flags of its scripts as its README writes them."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rarefy.errors import ManifestError, bad, near_name
from rarefy.models.config import NetworkConfig
from rarefy.models.folder import ModelFolder
from rarefy.models.importing.class_names import read_class_names
from rarefy.models.importing.output import Imported, write_imported
from rarefy.new_output import check_free

IMAGENET_CLASSES = 1000
CHANNEL_MULTS: dict[int, tuple[float, ...]] = {
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}
# Flags of sampling and of training that do not change what the networks are.
_UNUSED = (
    "batch_size", "num_samples", "timestep_respacing", "use_ddim", "clip_denoised", "model_path", "classifier_path",
    "use_fp16", "classifier_use_fp16", "use_checkpoint", "use_kl", "rescale_learned_sigmas",
)  # fmt: skip
_BOOLEANS = {"yes": True, "true": True, "t": True, "y": True, "1": True,
             "no": False, "false": False, "f": False, "n": False, "0": False}  # fmt: skip


@dataclass(frozen=True)
class Flags:
    """The flags that describe networks and diffusion, with the defaults of guided-diffusion's scripts.

    unused: names of other known flags that were given.
    """

    image_size: int = 64
    num_channels: int = 128
    num_res_blocks: int = 2
    num_heads: int = 4
    num_heads_upsample: int = -1
    num_head_channels: int = -1
    attention_resolutions: str = "16,8"
    channel_mult: str = ""
    dropout: float = 0.0
    class_cond: bool = False
    use_scale_shift_norm: bool = True
    resblock_updown: bool = False
    use_new_attention_order: bool = False
    learn_sigma: bool = False
    diffusion_steps: int = 1000
    noise_schedule: str = "linear"
    predict_xstart: bool = False
    rescale_timesteps: bool = False
    classifier_width: int = 128
    classifier_depth: int = 2
    classifier_attention_resolutions: str = "32,16,8"
    classifier_use_scale_shift_norm: bool = True
    classifier_resblock_updown: bool = True
    classifier_pool: str = "attention"
    classifier_scale: float = 1.0
    unused: tuple[str, ...] = ()


def import_guided_diffusion(
    flags: str, unet: str, classifier: str | None, out: str, class_names: str | None = None
) -> Imported:
    """Write a model folder from guided-diffusion's files. flags: as on its command line; class_names: see
    read_class_names, whose number replaces ImageNet's 1,000 classes.

    Raises ManifestError, CheckpointError, OutputError.
    """
    check_free(out)
    parsed, names = parse_flags(flags), read_class_names(class_names)
    folder = describe(parsed, classifier is not None, names)
    weights = {"unet": Path(unet)} | ({"classifier": Path(classifier)} if classifier is not None else {})
    given = ", ".join(f"--{name}" for name in parsed.unused)
    notes = (f"{given} describe no network and are not used; the manifest decides how to sample",) if given else ()
    return write_imported(folder, weights, out, {"from": "guided-diffusion", "flags": flags}, notes)


def parse_flags(text: str) -> Flags:
    """Read ``--name value`` or ``--name=value`` flags. Raises ManifestError for unknown ones and for bad values."""
    known = {field.name: field.type for field in dataclasses.fields(Flags) if field.name != "unused"}
    values: dict[str, object] = {}
    unused = []
    for name, value in _pairs(text):
        if name in known:
            values[name] = _value(name, value, str(known[name]))
        elif name in _UNUSED:
            unused.append(name)
        else:
            near = near_name(name, [*known, *_UNUSED])
            nearest = f" (nearest: --{near})" if near else ""
            raise ManifestError(bad("flags", f"--{name}", f"a flag of guided-diffusion's scripts{nearest}"))
    return Flags(**values, unused=tuple(unused))  # type: ignore[arg-type] # _value has checked the types


def _pairs(text: str) -> list[tuple[str, str]]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ManifestError(bad("flags", text, f"readable: {error}")) from None
    pairs = []
    while words:
        name, equals, value = words.pop(0).partition("=")
        if not name.startswith("--"):
            raise ManifestError(bad("flags", name, "a flag that starts with --, or follows one: '--name value'"))
        if not equals:
            if not words or words[0].startswith("--"):
                raise ManifestError(bad("flags", name, "complete: it needs a value, '--name value'"))
            value = words.pop(0)
        pairs.append((name[2:], value))
    return pairs


def _value(name: str, text: str, kind: str) -> object:
    try:
        if kind == "bool":
            return _BOOLEANS[text.lower()]
        return {"int": int, "float": float, "str": str}[kind](text)
    except (KeyError, ValueError):
        allowed = {"bool": "True or False", "int": "a whole number", "float": "a number"}[kind]
        raise ManifestError(bad(f"flags: --{name}", text, allowed)) from None


def describe(flags: Flags, with_classifier: bool, class_names: Sequence[str] = ()) -> ModelFolder:
    """The model that the flags describe. class_names: none, or one per class, which then are as many as there are.

    Raises ManifestError.
    """
    if flags.rescale_timesteps and flags.diffusion_steps != 1000:
        allowed = "possible here: these networks take the original time steps, unless diffusion_steps is 1000"
        raise ManifestError(bad("flags: --rescale_timesteps", True, allowed))
    if flags.noise_schedule not in ("linear", "cosine"):
        raise ManifestError(bad("flags: --noise_schedule", flags.noise_schedule, "linear or cosine"))
    if class_names and not flags.class_cond and not with_classifier:
        raise ManifestError(bad("class-names", len(class_names), "allowed: without --class_cond True and without a "
                                "classifier the model knows no classes"))  # fmt: skip
    classes = len(class_names) or IMAGENET_CLASSES
    try:
        return ModelFolder(
            name="imported",
            description="imported from guided-diffusion",
            unet=_unet(flags, classes),
            classifier=_classifier(flags, classes) if with_classifier else None,
            schedule=flags.noise_schedule,
            recommended_scale=flags.classifier_scale,
            diffusion_steps=flags.diffusion_steps,
            class_names=tuple(class_names),
            prediction="sample" if flags.predict_xstart else "eps",
        )
    except ManifestError:
        raise
    except ValueError as error:
        raise ManifestError(f"flags: {error}") from error


def _unet(flags: Flags, classes: int) -> NetworkConfig:
    return NetworkConfig(
        image_size=flags.image_size,
        in_channels=3,
        model_channels=flags.num_channels,
        out_channels=6 if flags.learn_sigma else 3,
        num_res_blocks=flags.num_res_blocks,
        attention_resolutions=_factors("attention_resolutions", flags.attention_resolutions, flags.image_size),
        channel_mult=_channel_mult(flags, flags.channel_mult),
        dropout=flags.dropout,
        num_classes=classes if flags.class_cond else None,
        # The reference ignores num_heads if num_head_channels is given.
        num_heads=flags.num_heads if flags.num_head_channels == -1 else 1,
        num_head_channels=flags.num_head_channels,
        num_heads_upsample=flags.num_heads_upsample,
        use_scale_shift_norm=flags.use_scale_shift_norm,
        resblock_updown=flags.resblock_updown,
        use_new_attention_order=flags.use_new_attention_order,
    )


def _classifier(flags: Flags, classes: int) -> NetworkConfig:
    name, resolutions = "classifier_attention_resolutions", flags.classifier_attention_resolutions
    return NetworkConfig(
        image_size=flags.image_size,
        in_channels=3,
        model_channels=flags.classifier_width,
        out_channels=classes,
        num_res_blocks=flags.classifier_depth,
        attention_resolutions=_factors(name, resolutions, flags.image_size),
        channel_mult=_channel_mult(flags, ""),
        num_head_channels=64,
        use_scale_shift_norm=flags.classifier_use_scale_shift_norm,
        resblock_updown=flags.classifier_resblock_updown,
        pool=flags.classifier_pool,
    )


def _factors(name: str, text: str, image_size: int) -> tuple[int, ...]:
    """Resolutions in pixels, "32,16,8", as downsampling factors."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= image_size for part in parts):
        allowed = f"resolutions from 1 to {image_size} in pixels, separated by commas"
        raise ManifestError(bad(f"flags: --{name}", text, allowed))
    return tuple(image_size // int(part) for part in parts)


def _channel_mult(flags: Flags, text: str) -> tuple[float, ...]:
    if text:
        try:
            return tuple(float(part) if "." in part else int(part) for part in text.split(","))
        except ValueError:
            allowed = "numbers separated by commas"
            raise ManifestError(bad("flags: --channel_mult", text, allowed)) from None
    if flags.image_size not in CHANNEL_MULTS:
        allowed = f"one of {', '.join(map(str, CHANNEL_MULTS))}, unless --channel_mult is given"
        raise ManifestError(bad("flags: --image_size", flags.image_size, allowed))
    return CHANNEL_MULTS[flags.image_size]
