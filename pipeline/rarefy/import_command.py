"""The command ``rarefy import``. Heavy imports live in the handlers."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rarefy.command_line import Style, add_command, add_examples, print_result

if TYPE_CHECKING:
    from rarefy.models.importing.output import Imported

_DESCRIPTION = "Make a model folder from another program's checkpoint. docs/IMPORT.md has more examples."
_GUIDED = (
    "The flags are those of guided-diffusion's README for the model. A model of other classes than ImageNet's needs "
    "--class-names FILE: it says how many there are."
)
_DIFFUSERS = (
    "The pipeline was saved or downloaded before. Its folder has model_index.json, or it is that of a UNet2DModel with "
    "a scheduler_config.json."
)


def add_import(commands: Any) -> None:
    """Add the command to the program's commands."""
    text = "make a model folder from another program's checkpoint"
    command = commands.add_parser("import", help=text, description=_DESCRIPTION, formatter_class=Style)
    add_examples(command)
    formats = command.add_subparsers(required=True, metavar="FORMAT", title="formats")
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
    formats: Any, name: str, text: str, details: str, handler: Callable[[argparse.Namespace], Imported]
) -> argparse.ArgumentParser:
    command = add_command(formats, name, lambda arguments: _print(arguments, handler(arguments)), text)
    command.description = f"Import {text}. {details}"
    command.add_argument("--out", required=True, help="the model folder to write; it must not exist")
    names = "text file with a name per line, in the order of the class ids, or imagenet (default: no names)"
    command.add_argument("--class-names", metavar="FILE", help=names)
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
    return print_result(arguments, imported.content(), imported.text())
