"""The command ``rarefy import``. Heavy imports live in the handlers."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rarefy.models.importing.output import Imported

_DESCRIPTION = "Make a model folder from another program's checkpoint. docs/IMPORT.md has more examples."
_GUIDED = """Example, with the files and flags of guided-diffusion's README for 64 px:

  rarefy import guided-diffusion --unet 64x64_diffusion.pt --classifier 64x64_classifier.pt \\
    --flags "--attention_resolutions 32,16,8 --class_cond True --diffusion_steps 1000 --dropout 0.1 \\
             --image_size 64 --learn_sigma True --noise_schedule cosine --num_channels 192 \\
             --num_head_channels 64 --num_res_blocks 3 --resblock_updown True \\
             --use_new_attention_order True --use_fp16 True --use_scale_shift_norm True \\
             --classifier_depth 4" \\
    --class-names imagenet --out models/adm64

A model of other classes than ImageNet's needs --class-names FILE: it says how many there are."""
_DIFFUSERS = """Example, with a pipeline that was saved or downloaded before:

  rarefy import diffusers ddpm-butterflies/ --out models/butterflies

The folder has model_index.json, or it is that of a UNet2DModel with a scheduler_config.json."""


def add_import(commands: Any) -> None:
    """Add the command to the program's commands."""
    text = "make a model folder from another program's checkpoint"
    command = commands.add_parser("import", help=text, description=_DESCRIPTION)
    formats = command.add_subparsers(required=True, metavar="FORMAT")
    _add_guided_diffusion(formats)
    _add_diffusers(formats)


def _add_guided_diffusion(formats: Any) -> None:
    text = "checkpoints of openai/guided-diffusion"
    command = _format(formats, "guided-diffusion", text, _GUIDED, _guided_diffusion)
    command.add_argument("--flags", required=True, help="the flags of its scripts in quotes, also the classifier's")
    command.add_argument("--unet", required=True, help="file of the diffusion model")
    command.add_argument("--classifier", help="file of the noise-aware classifier (default: none)")


def _add_diffusers(formats: Any) -> None:
    text = "a UNet2DModel of the diffusers library"
    command = _format(formats, "diffusers", text, _DIFFUSERS, _diffusers)
    command.add_argument("path", metavar="PATH", help="local folder of the pipeline or the UNet2DModel")


def _format(
    formats: Any, name: str, text: str, example: str, handler: Callable[[argparse.Namespace], Imported]
) -> argparse.ArgumentParser:
    style = argparse.RawDescriptionHelpFormatter
    command: argparse.ArgumentParser = formats.add_parser(
        name, help=text, description=f"Import {text}.", epilog=example, formatter_class=style
    )
    command.add_argument("--out", required=True, help="the model folder to write; it must not exist")
    names = "text file with a name per line, in the order of the class ids, or imagenet"
    command.add_argument("--class-names", metavar="FILE", help=names)
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.set_defaults(handler=lambda arguments: _print(arguments, handler(arguments)), command=command.prog)
    return command


def _guided_diffusion(arguments: argparse.Namespace) -> Imported:
    from rarefy.models.importing.guided_diffusion import import_guided_diffusion

    return import_guided_diffusion(
        arguments.flags, arguments.unet, arguments.classifier, arguments.out, arguments.class_names
    )


def _diffusers(arguments: argparse.Namespace) -> Imported:
    from rarefy.models.importing.diffusers import import_diffusers

    return import_diffusers(arguments.path, arguments.out, arguments.class_names)


def _print(arguments: argparse.Namespace, imported: Imported) -> int:
    import json

    print(json.dumps(imported.content(), indent=1) if arguments.json else imported.text())
    return 0
