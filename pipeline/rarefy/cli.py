"""The command line: arguments and exit codes, nothing else. Heavy imports live in the handlers."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from rarefy import __version__
from rarefy.audit_commands import add_audit_arguments, add_audit_commands, audit_code
from rarefy.command_line import (
    OK,
    OUT_HELP,
    PROBLEMS,
    STYLE,
    TRY_AGAIN,
    USER_ERROR,
    Handler,
    UsageError,
    add_command,
    add_plugins,
    allow_plugins,
    print_result,
)
from rarefy.errors import RarefyError, StorageError, TemporaryError
from rarefy.extras import missing_package
from rarefy.import_command import add_import
from rarefy.interrupts import sigterm_interrupts
from rarefy.shipped import FOLDER, shipped_manifests, shipped_names

if TYPE_CHECKING:
    from rarefy.generate.driver import GenerateOptions

MANIFEST_HELP = f"what to make: a TOML file such as rare.toml, or a name: {', '.join(shipped_names())}"
READER_GONE = 128 + signal.SIGPIPE  # what a shell says of a program that SIGPIPE ended
UNFORESEEN = 70  # EX_SOFTWARE of sysexits.h; a traceback that Python prints would exit with 1, which means damage
PARTS = ("diffusion", "classifier", "judge")  # a copy of those in rarefy.training.recipe, whose import is slow
DESCRIPTION = "Audited data sets of rare images from a diffusion model, which may be trained on your own images."
JOURNEY = """from a folder of images to an audited set of rare ones:
  rarefy init photos/ --out mine
  rarefy train mine/train.toml
  rarefy run mine/rare.toml --out out/rare
"""


class _Parser(argparse.ArgumentParser):
    """Reports an argument error in one line, like every other error."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0: success; 1: verify found problems; 2: a user's error (one line on stderr); 3: a gate failed; 5: the audit is
    incomplete; 70: a fault of rarefy's own, with a traceback; 75: a fault that is not the user's, try again; 130:
    Ctrl-C; 141: nobody reads the output any more; 143: SIGTERM.
    """
    with sigterm_interrupts() as received:
        try:
            return _report_errors(argv, received)
        except BrokenPipeError:  # while an error was reported
            return READER_GONE if _reader_has_gone() else UNFORESEEN


def _report_errors(argv: Sequence[str] | None, received: Sequence[int]) -> int:
    """Run a command and report what goes wrong. received: see sigterm_interrupts."""
    try:
        return _run_command(argv)
    except RarefyError as error:
        print(f"rarefy: error: {' '.join(str(error).split())}", file=sys.stderr)
        return TRY_AGAIN if isinstance(error, TemporaryError | StorageError) else USER_ERROR
    except KeyboardInterrupt as interrupt:
        return interrupted(received, interrupt)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_has_gone():
            return READER_GONE
        traceback.print_exc()
        print(f"rarefy: this is a fault of rarefy's own; please report it (version {__version__})", file=sys.stderr)
        return UNFORESEEN


def _run_command(argv: Sequence[str] | None) -> int:
    """Run a command. Its output is flushed here, where a reader that has gone can still be handled."""
    arguments = make_parser().parse_args(argv)
    handler: Handler = arguments.handler
    try:
        code = handler(arguments)
    except ImportError as error:
        if (missing := missing_package(arguments.command, error)) is None:
            raise
        raise missing from error
    print(end="", flush=True)
    return code


def _reader_has_gone() -> bool:
    """Whether stdout or stderr goes to a program that has ended, such as ``head``. It then goes nowhere instead."""
    gone = False
    for descriptor in (1, 2):
        poll = select.poll()
        poll.register(descriptor, 0)  # errors are reported in any case
        if any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
            gone = True
    return gone


def interrupted(received: Sequence[int], interrupt: KeyboardInterrupt) -> int:
    """Report an interrupt and return the exit code: 130 for Ctrl-C, 143 for SIGTERM. See sigterm_interrupts."""
    print("rarefy: interrupted; finished work is kept, run the same command to resume", file=sys.stderr)
    return 128 + next(iter([*received, *interrupt.args]), signal.SIGINT)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each command sets ``handler``."""
    parser = _Parser(prog="rarefy", description=DESCRIPTION, epilog=JOURNEY, formatter_class=STYLE)
    parser.add_argument("--version", action="version", version=f"rarefy {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    _add_init(commands)
    command = add_command(commands, "run", _run, "generate, seal, select if the manifest says so, audit and report")
    _add_generate_arguments(command)
    add_audit_arguments(command)
    _add_plan(commands)
    command = add_command(commands, "generate", _generate, "generate every shard that is not committed yet")
    _add_generate_arguments(command)
    command = add_command(commands, "seal", _seal, "verify all shards and write index, card and _SUCCESS")
    command.add_argument("out", metavar="OUT", help=OUT_HELP)
    text = "on damage, delete _SUCCESS and the damaged shards' markers, so that generate makes them again"
    command.add_argument("--repair", action="store_true", help=text)
    text = "choose the data set of a sealed run whose manifest has [select], and write it to OUT/selected"
    command = add_command(commands, "select", _select, text)
    command.add_argument("out", metavar="OUT", help=OUT_HELP)
    _add_select_arguments(command)
    command = add_command(commands, "verify", _verify, "compare all files with the plan and their hashes")
    command.add_argument("out", metavar="OUT", help=OUT_HELP)
    command = add_command(commands, "status", _status, "show a run's progress, drivers and failures, from OUT alone")
    command.add_argument("out", metavar="OUT", help=OUT_HELP)
    add_audit_commands(commands)
    _add_train(commands)
    add_import(commands)
    _add_bench(commands)
    command = add_command(commands, "models", _models, "list the models that ship with rarefy, or describe one")
    add_plugins(command)
    text = "a name, a model folder, hf://org/name[@revision] or an fsspec URL (default: list those that ship)"
    command.add_argument("model", metavar="MODEL", nargs="?", help=text)
    return parser


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


def _add_plan(commands: Any) -> None:
    text = "show what a manifest would produce: classes, shards, size, time; or list the manifests that ship"
    command = add_command(commands, "plan", _plan, text)
    text = f"{MANIFEST_HELP} (default: list these)"
    command.add_argument("manifest", metavar="MANIFEST", nargs="?", help=text)
    add_plugins(command)
    text = "count these real images and plan what fills their classes up, instead of the manifest's [classes]"
    command.add_argument("--fill", metavar="DATA", help=text)
    text = "images per class, real and made (default: as many as the largest class has)"
    command.add_argument("--to", type=int, metavar="N", help=text)


def _add_select_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", help="where the run's model folder is now, if it has moved")
    text = "fill up classes that have too few acceptable images with the best of their others"
    command.add_argument("--keep-exhausted", action="store_true", help=text)
    command.add_argument("--ray-address", help="Ray cluster that computes the features (default: this process)")
    command.add_argument("--device", default="cpu", help="for features and distances: cpu (default), cuda or cuda:N")


def _add_generate_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("manifest", metavar="MANIFEST", help=MANIFEST_HELP)
    command.add_argument("--out", required=True, help=OUT_HELP)
    add_plugins(command)
    group = command.add_argument_group("resources (they change an image by rounding at most)")
    text = "sampling processes: at most N, or max, as many as fit at any time (default)"
    group.add_argument("--actors", type=_most, metavar="N", help=text)
    group.add_argument("--gpus-per-actor", type=float, default=0.0, help="may be a fraction (default 0: the CPU)")
    group.add_argument("--cpus-per-actor", type=int, help="default: all cores, divided among the actors")
    group.add_argument("--ray-address", help="Ray cluster to use, e.g. auto (default: start a local Ray)")
    text = "most seconds per shard (default: an actor may take its time as long as it makes progress)"
    group.add_argument("--shard-timeout", type=float, metavar="SECONDS", help=text)
    group.add_argument("--max-attempts", type=int, default=3, metavar="N", help="attempts per shard (default 3)")
    text = "how long a failing storage call is repeated (default 300)"
    group.add_argument("--storage-patience", type=float, default=300.0, metavar="SECONDS", help=text)
    _add_compile(group)
    text = "print progress and events as JSON lines on stderr, for log collectors"
    command.add_argument("--log-json", action="store_true", help=text)
    group = command.add_argument_group("slots that [accept] leaves empty (images that are made already stay the same)")
    text = "draw up to N candidates for each slot, more than accept.max_candidates"
    group.add_argument("--max-candidates", type=int, metavar="N", help=text)
    text = "keep the last draw of a slot that ran out of candidates, with accepted = false; fill up what [select] lacks"
    group.add_argument("--keep-exhausted", action="store_true", help=text)


def _most(text: str) -> int | None:
    """A number of actors; None for max."""
    if not (text == "max" or text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number or max")
    return None if text == "max" else int(text)


def _add_compile(group: Any) -> None:
    text = "auto: rarefy's kernels and CUDA graphs (default); off: plain PyTorch; full: torch.compile"
    # A copy of rarefy.device.COMPILES, because importing it would slow down --help.
    group.add_argument("--compile", choices=("auto", "off", "full"), default="auto", help=text)


def _add_train(commands: Any) -> None:
    command = add_command(commands, "train", _train, "train a model of your own, or one of its parts; resumes a run")
    command.usage = "rarefy train [options] [PART] RECIPE"
    text = f"train.toml as rarefy init writes it, or one of manifests/train; PART is {', '.join(PARTS)}"
    command.add_argument("recipe", metavar="RECIPE", nargs="+", help=text)
    text = "for a recipe with a preset: local folder; a run that is already there is resumed"
    command.add_argument("--out", help=text)
    command.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    command.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    command.add_argument("--tensorboard", action="store_true", help="also write files for TensorBoard")
    text = "for a recipe with a preset, classifier only: weight of the entropy constraint, e.g. 0.1"
    command.add_argument("--ect", type=float, help=text)
    _add_compile(command)
    add_plugins(command)


def _add_bench(commands: Any) -> None:
    command = add_command(commands, "bench", _bench, "time a model's guided step on this machine")
    text = "a TOML file or the name of one that ships (default: the embedded model with classifier guidance)"
    command.add_argument("manifest", metavar="MANIFEST", nargs="?", help=text)
    command.add_argument("--preset", help="a model's name (see rarefy models), instead of a manifest")
    command.add_argument("--precision", choices=("exact", "fast"), help="default: the manifest's")
    command.add_argument("--batch", help="batch sizes such as 8,16, or auto (default: the manifest's, else auto)")
    command.add_argument("--growth", action="store_true", help="also measure twice the image size, with random weights")
    command.add_argument("--actors", help="also time this many parallel processes, such as 1,2,4")
    command.add_argument("--threads", type=int, default=1, help="CPU threads of torch (default 1, as in an actor)")
    command.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    _add_compile(command)
    add_plugins(command)


def _options(arguments: argparse.Namespace) -> GenerateOptions:
    from rarefy.generate.driver import GenerateOptions

    return GenerateOptions(
        out=arguments.out,
        actors=arguments.actors,
        gpus_per_actor=arguments.gpus_per_actor,
        cpus_per_actor=arguments.cpus_per_actor,
        ray_address=arguments.ray_address,
        shard_timeout_s=arguments.shard_timeout,
        max_attempts=arguments.max_attempts,
        compile=arguments.compile,
        storage_patience_s=arguments.storage_patience,
        max_candidates=arguments.max_candidates,
        keep_exhausted=arguments.keep_exhausted,
    )


def _run(arguments: argparse.Namespace) -> int:
    from rarefy.audit.audit import AuditOptions
    from rarefy.audit.page.summary import summary_lines
    from rarefy.audit.schema import AuditResult
    from rarefy.generate.progress import stage_json, stage_line
    from rarefy.generate.watch import watched
    from rarefy.manifest import load_manifest
    from rarefy.stages import Reports, run

    manifest = load_manifest(arguments.manifest, allow_plugins=allow_plugins(arguments))
    options = _options(arguments)
    with watched(manifest, options, arguments.log_json) as watch:
        stage = stage_json if arguments.log_json else stage_line
        audit = AuditOptions(training=arguments.training, against=arguments.against, utility=arguments.utility)
        result = run(manifest, options, audit, Reports(watch.progress, stage, watch.notice, watch.listeners))
    page = f"{arguments.out.rstrip('/')}/{result.report}"
    selected = [] if result.selected is None else [result.selected.text()]
    sealed = f"sealed {result.sealed.samples:,} images"
    summary = summary_lines(AuditResult.from_json(result.metrics))
    lines = [result.generated.text(), sealed, *selected, *summary, f"report: {page}"]
    print_result(arguments, dataclasses.asdict(result), "\n".join(lines))
    return audit_code(result.metrics)


def _init(arguments: argparse.Namespace) -> int:
    from rarefy.generate.progress import stage_line
    from rarefy.project.init import InitOptions, init

    names = [field.name for field in dataclasses.fields(InitOptions)]
    options = InitOptions(**{name: getattr(arguments, name) for name in names})
    stream = sys.stderr if arguments.json else sys.stdout
    progress = functools.partial(stage_line, command="init")
    result = init(options, lambda line: print(line, file=stream, flush=True), progress)
    if arguments.json:
        print(json.dumps(dataclasses.asdict(result), indent=1))
    return OK


def _plan(arguments: argparse.Namespace) -> int:
    if arguments.manifest is None:
        return _list_manifests(arguments)
    from rarefy.fill import given_fill
    from rarefy.generate.estimate import summarize
    from rarefy.manifest import load_manifest

    fill = given_fill(arguments.fill, arguments.to)
    summary = summarize(load_manifest(arguments.manifest, fill, allow_plugins(arguments)))
    return print_result(arguments, dataclasses.asdict(summary), summary.text())


def _list_manifests(arguments: argparse.Namespace) -> int:
    for name in ("fill", "to"):
        if (value := getattr(arguments, name)) is not None:
            raise UsageError(f"--{name}: {value!r} is not allowed without a manifest")
    manifests = shipped_manifests()
    lines = [f"{each.name:<18}{each.description}" for each in manifests]
    lines.append(f"Commands take these by name. To change one, copy its file from {FOLDER}.")
    return print_result(arguments, [dataclasses.asdict(each) for each in manifests], "\n".join(lines))


def _generate(arguments: argparse.Namespace) -> int:
    from rarefy.generate.driver import generate
    from rarefy.generate.watch import watched
    from rarefy.manifest import load_manifest

    manifest = load_manifest(arguments.manifest, allow_plugins=allow_plugins(arguments))
    options = _options(arguments)
    with watched(manifest, options, arguments.log_json) as watch:
        result = generate(manifest, options, watch.progress, watch.listeners)
    return print_result(arguments, dataclasses.asdict(result), result.text())


def _seal(arguments: argparse.Namespace) -> int:
    from rarefy.shards.store import Store
    from rarefy.stages import seal_run

    sealed = seal_run(Store(arguments.out), arguments.repair)
    text = f"sealed: {sealed.samples:,} images in {sealed.shards:,} shards, {sealed.size_bytes / 1e6:,.1f} MB"
    return print_result(arguments, dataclasses.asdict(sealed), text)


def _select(arguments: argparse.Namespace) -> int:
    from rarefy.generate.progress import stage_line
    from rarefy.select.stage import SelectOptions
    from rarefy.shards.store import Store
    from rarefy.stages import select

    names = [field.name for field in dataclasses.fields(SelectOptions)]
    options = SelectOptions(**{name: getattr(arguments, name) for name in names})
    selected = select(Store(arguments.out), options, functools.partial(stage_line, command="select"))
    return print_result(arguments, dataclasses.asdict(selected), selected.text())


def _verify(arguments: argparse.Namespace) -> int:
    from rarefy.shards.store import Store
    from rarefy.stages import verify_run

    problems = verify_run(Store(arguments.out))
    lines = [f"{name}: {line}" for name, lines in problems.items() for line in lines]
    print_result(arguments, {"problems": problems}, "\n".join(lines) or "all shards are complete and undamaged")
    return PROBLEMS if problems else OK


def _status(arguments: argparse.Namespace) -> int:
    from rarefy.shards.store import Store
    from rarefy.status import read_status

    status = read_status(Store(arguments.out))
    return print_result(arguments, dataclasses.asdict(status), status.text())


def _train(arguments: argparse.Namespace) -> int:
    from pathlib import Path

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
            raise UsageError(f"part: {part!r} is not {' or '.join(PARTS[:2])}, one of which goes before this recipe")
        if arguments.out is None:
            raise UsageError("--out: None is not a folder, which a recipe with a preset needs")
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
        raise UsageError(f"part: {words[0]!r} is not one of {', '.join(PARTS)}")
    return (words[0] if len(words) == 2 else None), words[-1]


def _bench(arguments: argparse.Namespace) -> int:
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


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"
