"""The commands that plan and make a run: plan, run and generate. Heavy imports live in the handlers."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from rarefy.audit_commands import add_audit_arguments, audit_code
from rarefy.command_line import OUT_HELP, add_command, add_compile, add_plugins, allow_plugins, print_result

if TYPE_CHECKING:
    from rarefy.generate.driver import GenerateOptions

MANIFEST_HELP = "what to make, a TOML file such as rare.toml"


def add_run_commands(commands: Any) -> None:
    """Add the commands to the program's commands."""
    _add_plan(commands)
    command = add_command(commands, "run", _run, "generate, seal, select if the manifest says so, audit and report")
    _add_generate_arguments(command)
    add_audit_arguments(command)
    command = add_command(commands, "generate", _generate, "generate every shard that is not committed yet")
    _add_generate_arguments(command)


def _add_plan(commands: Any) -> None:
    text = "show what a manifest would produce: classes, shards, size, time"
    command = add_command(commands, "plan", _plan, text)
    command.add_argument("manifest", metavar="MANIFEST", help=MANIFEST_HELP)
    add_plugins(command)
    text = "count these real images and plan what fills their classes up, instead of the manifest's [classes]"
    command.add_argument("--fill", metavar="DATA", help=text)
    text = "images per class, real and made (default: as many as the largest class has)"
    command.add_argument("--to", type=int, metavar="N", help=text)


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
    add_compile(group)
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


def _plan(arguments: argparse.Namespace) -> int:
    from rarefy.fill import given_fill
    from rarefy.generate.estimate import summarize
    from rarefy.manifest import load_manifest

    fill = given_fill(arguments.fill, arguments.to)
    summary = summarize(load_manifest(arguments.manifest, fill, allow_plugins(arguments)))
    return print_result(arguments, dataclasses.asdict(summary), summary.text())


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


def _generate(arguments: argparse.Namespace) -> int:
    from rarefy.generate.driver import generate
    from rarefy.generate.watch import watched
    from rarefy.manifest import load_manifest

    manifest = load_manifest(arguments.manifest, allow_plugins=allow_plugins(arguments))
    options = _options(arguments)
    with watched(manifest, options, arguments.log_json) as watch:
        result = generate(manifest, options, watch.progress, watch.listeners)
    return print_result(arguments, dataclasses.asdict(result), result.text())
