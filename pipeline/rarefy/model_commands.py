"""The commands about a model: models and bench. Heavy imports live in the handlers."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Any

from rarefy.command_line import add_command, add_compile, add_plugins, allow_plugins, print_result


def add_model_commands(commands: Any) -> None:
    """Add the commands to the program's commands."""
    command = add_command(commands, "models", _models, "list the models that ship with rarefy, or describe one")
    add_plugins(command)
    text = "a name, a model folder, hf://org/name[@revision] or an fsspec URL (default: list those that ship)"
    command.add_argument("model", metavar="MODEL", nargs="?", help=text)
    _add_bench(commands)


def _add_bench(commands: Any) -> None:
    command = add_command(commands, "bench", _bench, "time a model's guided step on this machine")
    text = "a TOML file or the name of one that ships (default: the embedded model with classifier guidance)"
    command.add_argument("manifest", metavar="MANIFEST", nargs="?", help=text)
    command.add_argument("--preset", help="a model's name (see rarefy models), instead of a manifest (default: none)")
    command.add_argument("--precision", choices=("exact", "fast"), help="default: the manifest's")
    command.add_argument("--batch", help="batch sizes such as 8,16, or auto (default: the manifest's, else auto)")
    command.add_argument("--growth", action="store_true", help="also measure twice the image size, with random weights")
    command.add_argument("--actors", help="also time this many parallel processes, such as 1,2,4 (default: none)")
    command.add_argument("--threads", type=int, default=1, help="CPU threads of torch (default 1, as in an actor)")
    command.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    add_compile(command)
    add_plugins(command)


def _bench(arguments: argparse.Namespace) -> int:
    from rarefy.generate.progress import ProgressLine

    with ProgressLine() as line:
        line.waits("bench", "loading torch")
        from rarefy.bench.bench import AUTO, Bench, BenchOptions, bench_manifest, table

    manifest = bench_manifest(arguments.manifest, arguments.preset, arguments.precision, allow_plugins(arguments))
    options = BenchOptions(
        batch=arguments.batch or (None if arguments.manifest else AUTO),
        growth=arguments.growth,
        actors=arguments.actors,
        threads=arguments.threads,
        device=arguments.device,
        compile=arguments.compile,
    )
    result = Bench(manifest, options, lambda line: print(f"bench: {line}", file=sys.stderr, flush=True)).run()
    return print_result(arguments, dataclasses.asdict(result), table(result))


def _models(arguments: argparse.Namespace) -> int:
    from rarefy.models.folder import library

    if arguments.model is not None:
        from rarefy.models.describe import describe

        description = describe(arguments.model, allow_plugins(arguments))
        return print_result(arguments, dataclasses.asdict(description), description.text())
    shown = ["name", "image_size", "channels", "num_classes", "classifier_classes", "schedule", "diffusion_steps"]
    shown += ["recommended_scale", "embedded", "description"]
    rows = [{key: getattr(preset, key) for key in shown} for preset in library().values()]
    lines = [f"{row['name']:<28}{row['image_size']:>4} px  {row['description']}" for row in rows]
    return print_result(arguments, rows, "\n".join(lines))
