"""The commands that begin a project: init and train. Heavy imports live in the handlers."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from rarefy.command_line import OK, UsageError, add_command, add_compile, add_plugins, allow_plugins, print_result
from rarefy.errors import bad, one_of

PARTS = ("diffusion", "classifier", "judge")  # a copy of those in rarefy.training.recipe, whose import is slow


def add_project_commands(commands: Any) -> None:
    """Add the commands to the program's commands."""
    _add_init(commands)
    _add_train(commands)


def _add_init(commands: Any) -> None:
    text = "look at a folder of images and write train.toml and rare.toml for it, with reasons"
    command = add_command(commands, "init", _init, text)
    command.add_argument("data", metavar="DATA", help="class folders, .tar shards, Parquet, Hugging Face or IDX files")
    command.add_argument(
        "--out", required=True, metavar="DIR", help="the project's folder, new or empty and outside DATA"
    )
    text = "test set, which becomes the audit's reference (default: a tenth of each class is held out)"
    command.add_argument("--test", metavar="DATA", help=text)
    command.add_argument("--size", type=int, help="height and width in pixels (default: what this machine can train)")
    command.add_argument("--name", help="name of the model (default: the name of DATA's folder)")
    text = "images that training of the diffusion network sees, repeats included (default: by the size of the data)"
    command.add_argument("--images", type=int, help=text)
    command.add_argument("--skip-broken", action="store_true", help="leave out unreadable images and count them")
    text = "fraction of each class that is never trained on (default 0.1)"
    command.add_argument("--held-out", type=float, default=0.1, metavar="FRACTION", help=text)
    command.add_argument("--seed", type=int, default=0, help="of the held-out images and the training (default 0)")


def _add_train(commands: Any) -> None:
    command = add_command(commands, "train", _train, "train a model of your own, or one of its parts; resumes a run")
    command.usage = "rarefy train [options] [PART] RECIPE"
    text = (
        f"train.toml as rarefy init writes it (or one of the repository's manifests/train); PART is {', '.join(PARTS)}"
    )
    command.add_argument("recipe", metavar="RECIPE", nargs="+", help=text)
    text = "for a recipe with a preset, which has no default: local folder; a run that is already there is resumed"
    command.add_argument("--out", help=text)
    command.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    command.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    command.add_argument("--tensorboard", action="store_true", help="also write files for TensorBoard")
    text = "for a recipe with a preset, classifier only: weight of the entropy constraint (default: the recipe's)"
    command.add_argument("--ect", type=float, help=text)
    add_compile(command)
    add_plugins(command)


def _init(arguments: argparse.Namespace) -> int:
    from rarefy.generate.progress import ProgressLine

    with ProgressLine() as line:
        line.waits("init", "loading torch")
        from rarefy.project.init import InitOptions, init

        names = [field.name for field in dataclasses.fields(InitOptions)]
        options = InitOptions(**{name: getattr(arguments, name) for name in names})

        def say(text: str) -> None:
            line.close()  # both may be the same terminal
            print(text, flush=True)

        result = init(options, say, line.stages("init"))
    return print_result(arguments, dataclasses.asdict(result), "") if arguments.json else OK


def _train(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from rarefy.generate.progress import ProgressLine

    with ProgressLine() as line:
        if os.environ.get("RANK", "0") == "0":  # torchrun's other processes have the same terminal
            line.waits("train", "loading torch")
        from rarefy.project.train import train_project
        from rarefy.training.recipe import names_preset
        from rarefy.training.run import TrainOptions, run_training

    part, recipe = _part_and_recipe(arguments.recipe)
    how = arguments.device, arguments.threads, arguments.compile, arguments.tensorboard
    options = TrainOptions(*how, allow_plugins=allow_plugins(arguments))
    if not names_preset(Path(recipe)):
        for name in ("out", "ect"):
            if (value := getattr(arguments, name)) is not None:
                raise UsageError(f"--{name}: {value!r} is not allowed here: {recipe} says it itself")
        result = train_project(Path(recipe), part, options)
        text = _trained(result)
    else:
        if part not in PARTS[:2]:
            raise UsageError(bad("part", part, f"{' or '.join(PARTS[:2])} before a recipe with a preset"))
        if arguments.out is None:
            raise UsageError(bad("--out", None, "a folder, which a recipe with a preset needs"))
        result = run_training(part, recipe, arguments.out, options, arguments.ect)
        text = f"weights: {arguments.out.rstrip('/')}/weights.safetensors"
    return print_result(arguments, result, text) if result else OK  # under torchrun, only rank 0 prints


def _trained(provenance: dict[str, Any]) -> str:
    """What a model folder's provenance says, in one line or two."""
    lines = ["trained: " + ", ".join(name for name in PARTS if name in provenance)]
    if quality := provenance.get("quality"):
        names = [name for name in ("fid", "precision", "recall", "on_class") if name in quality]
        values = [f"{name} {_figure(quality[name])} (real images {_figure(quality['real'][name])})" for name in names]
        lines.append(f"quality of {quality['sample_images']:,} images: " + ", ".join(values))
    return "\n".join(lines)


def _part_and_recipe(words: Sequence[str]) -> tuple[str | None, str]:
    if len(words) > 2:
        raise UsageError(f"recipe: {' '.join(words)!r} is not RECIPE or PART RECIPE")
    if len(words) == 2 and words[0] not in PARTS:
        raise UsageError(bad("part", words[0], one_of(words[0], PARTS)))
    return (words[0] if len(words) == 2 else None), words[-1]


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"
