"""The commands that plan and make a run: plan, run and generate. Heavy imports live in the handlers."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from rarefy.audit_commands import add_audit_arguments, audit_code, audit_options
from rarefy.command_line import OUT_HELP, UsageError, add_command, add_compile, add_plugins, allow_plugins, print_result
from rarefy.errors import bad
from rarefy.shipped import FOLDER, shipped_manifests, shipped_names

if TYPE_CHECKING:
    from rarefy.generate.driver import GenerateOptions

MANIFEST_HELP = f"what to make: a TOML file such as rare.toml, or a name: {', '.join(shipped_names())}"


def add_run_commands(commands: Any) -> None:
    """Add the commands to the program's commands."""
    _add_plan(commands)
    command = add_command(commands, "run", _run, "generate, seal, select if the manifest says so, audit and report")
    resources = _add_generate_arguments(command)
    text = (
        "of sampling and audit: cpu, cuda or cuda:N; cuda gives each actor a whole GPU, unless --gpus-per-actor says "
        "how much of one; Ray chooses the actors' GPUs, N is the audit's (default: cpu, or cuda if actors of a local "
        "Ray have GPUs)"
    )
    resources.add_argument("--device", help=text)
    add_audit_arguments(command.add_argument_group("the audit's"))
    command = add_command(commands, "generate", _generate, "generate every shard that is not committed yet")
    _add_generate_arguments(command)


def _add_plan(commands: Any) -> None:
    text = "show what a manifest would produce: classes, shards, size, time; or list the manifests that ship"
    command = add_command(commands, "plan", _plan, text)
    text = f"{MANIFEST_HELP} (default: list these)"
    command.add_argument("manifest", metavar="MANIFEST", nargs="?", help=text)
    add_plugins(command)
    text = "count these real images and plan what fills their classes up (default: the manifest's [classes])"
    command.add_argument("--fill", metavar="DATA", help=text)
    text = "images per class, real and made (default: as many as the largest class has)"
    command.add_argument("--to", type=int, metavar="N", help=text)


def _add_generate_arguments(command: argparse.ArgumentParser) -> Any:
    """Add the arguments of run and generate; returns the group of resources."""
    command.add_argument("manifest", metavar="MANIFEST", help=MANIFEST_HELP)
    command.add_argument("--out", required=True, help=OUT_HELP)
    add_plugins(command)
    resources = group = command.add_argument_group("resources (they change an image by rounding at most)")
    text = "sampling processes: at most N, or max, as many as fit at any time (default)"
    group.add_argument("--actors", type=_most, metavar="N", help=text)
    group.add_argument("--gpus-per-actor", type=float, help="may be a fraction (default 0: the CPU)")
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
    title = "slots that [accept] leaves empty"
    group = command.add_argument_group(title, "Images that are made already stay the same.")
    text = "draw up to N candidates for each slot (default: accept.max_candidates of the manifest)"
    group.add_argument("--max-candidates", type=int, metavar="N", help=text)
    text = "keep the last draw of a slot that ran out of candidates, with accepted = false; fill up what [select] lacks"
    group.add_argument("--keep-exhausted", action="store_true", help=text)
    return resources


def _most(text: str) -> int | None:
    """A number of actors; None for max."""
    if not (text == "max" or text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number or max")
    return None if text == "max" else int(text)


def find_places(device: str | None, gpus_per_actor: float | None, on_cluster: bool) -> tuple[str, float]:
    """The device of a run's audit, and the GPUs of each actor. Raises UsageError if the two flags contradict."""
    if device is None:
        on_gpu = (gpus_per_actor or 0.0) > 0 and not on_cluster
        return ("cuda" if on_gpu else "cpu"), gpus_per_actor or 0.0
    on_gpu = device.startswith("cuda")
    if gpus_per_actor is not None and on_gpu != (gpus_per_actor > 0):
        text = f"possible with --gpus-per-actor {gpus_per_actor:g}: leave one of the two out"
        raise UsageError(bad("device", device, text))
    return device, (1.0 if on_gpu else 0.0) if gpus_per_actor is None else gpus_per_actor


def _options(arguments: argparse.Namespace) -> GenerateOptions:
    from rarefy.generate.driver import GenerateOptions

    return GenerateOptions(
        out=arguments.out,
        actors=arguments.actors,
        gpus_per_actor=arguments.gpus_per_actor or 0.0,
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
    if arguments.manifest is None:
        return _list_manifests(arguments)
    from rarefy.generate.progress import ProgressLine

    with ProgressLine() as line:
        line.waits("plan", "loading torch")
        from rarefy.fill import given_fill
        from rarefy.generate.estimate import summarize
        from rarefy.manifest import load_manifest

        fill = given_fill(arguments.fill, arguments.to)
        manifest = load_manifest(arguments.manifest, fill, allow_plugins(arguments))
        line.waits("plan", "timing the sampler's steps")
        summary = summarize(manifest)
    return print_result(arguments, dataclasses.asdict(summary), summary.text())


def _list_manifests(arguments: argparse.Namespace) -> int:
    for name in ("fill", "to"):
        if (value := getattr(arguments, name)) is not None:
            raise UsageError(f"--{name}: {value!r} is not allowed without a manifest")
    manifests = shipped_manifests()
    lines = [f"{each.name:<18}{each.description}" for each in manifests]
    lines.append(f"Commands take these by name. To change one, copy its file from {FOLDER}.")
    return print_result(arguments, [dataclasses.asdict(each) for each in manifests], "\n".join(lines))


def _run(arguments: argparse.Namespace) -> int:
    from rarefy.generate.progress import ProgressLine

    with ProgressLine(as_json=arguments.log_json) as line:
        line.waits("run", "loading torch and Ray")
        from rarefy.audit.page.summary import summary_lines
        from rarefy.audit.schema import AuditResult
        from rarefy.generate.fit import check_gpus_here
        from rarefy.generate.watch import watched
        from rarefy.manifest import load_manifest
        from rarefy.stages import Reports, run

        manifest = load_manifest(arguments.manifest, allow_plugins=allow_plugins(arguments))
        device, gpus = find_places(arguments.device, arguments.gpus_per_actor, arguments.ray_address is not None)
        options = dataclasses.replace(_options(arguments), gpus_per_actor=gpus)
        if arguments.device is None and device != "cpu":
            check_gpus_here(gpus)  # otherwise the audit would complain about a device that nobody has named
        audit = dataclasses.replace(audit_options(arguments), device=device)
        line.waits("run", "looking at the real images")
        with watched(manifest, options, line) as watch:
            result = run(manifest, options, audit, Reports(watch.progress, line.stages, watch.notice, watch.listeners))
    page = f"{arguments.out.rstrip('/')}/{result.report}"
    selected = [] if result.selected is None else [result.selected.text()]
    sealed = f"sealed {result.sealed.samples:,} images"
    summary = summary_lines(AuditResult.from_json(result.metrics))
    lines = [result.generated.text(), sealed, *selected, *summary, f"report: {page}"]
    print_result(arguments, dataclasses.asdict(result), "\n".join(lines))
    return audit_code(result.metrics)


def _generate(arguments: argparse.Namespace) -> int:
    from rarefy.generate.progress import ProgressLine

    with ProgressLine(as_json=arguments.log_json) as line:
        line.waits("generate", "loading torch and Ray")
        from rarefy.generate.driver import generate
        from rarefy.generate.watch import watched
        from rarefy.manifest import load_manifest

        manifest = load_manifest(arguments.manifest, allow_plugins=allow_plugins(arguments))
        options = _options(arguments)
        with watched(manifest, options, line) as watch:
            result = generate(manifest, options, watch.progress, watch.listeners, line.stages("generate"))
    return print_result(arguments, dataclasses.asdict(result), result.text())
