"""The commands that measure and show a run: audit, report and compare. Heavy imports live in the handlers."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import TYPE_CHECKING, Any

from rarefy.command_line import (
    GATES_FAILED,
    INCOMPLETE_AUDIT,
    OK,
    OUT_HELP,
    add_command,
    add_plugins,
    allow_plugins,
    print_result,
)

if TYPE_CHECKING:
    from rarefy.audit.audit import AuditOptions


def add_audit_commands(commands: Any) -> None:
    """Add the commands to the program's commands."""
    _add_audit(commands)
    command = add_command(
        commands, "report", _report, "write an audited run's pages: audit/report.html and audit/gallery.html"
    )
    command.add_argument("out", metavar="OUT", help=OUT_HELP)
    command = add_command(commands, "compare", _compare, "compare audited runs under equal conditions")
    command.add_argument("runs", metavar="OUT", nargs="+", help="audited runs; each is compared with the first")
    command.add_argument("--page", default="compare.html", help="the page to write (default compare.html)")


def _add_audit(commands: Any) -> None:
    command = add_command(commands, "audit", _audit, "measure a run against real images")
    command.add_argument("out", metavar="OUT", help=OUT_HELP)
    command.add_argument("--model", help="where the run's model folder is now (default: where it was)")
    command.add_argument("--gates", metavar="FILE", help="TOML file with [gates] (default: the run's manifest)")
    command.add_argument("--ray-address", help="Ray cluster that computes the features (default: this process)")
    command.add_argument("--device", default="cpu", help="for features and distances: cpu (default), cuda or cuda:N")
    add_audit_arguments(command.add_argument_group("what to measure, and against what"))
    add_plugins(command)


def add_audit_arguments(group: Any) -> None:
    """Add what ``run`` and ``audit`` have in common. group: of a command's arguments."""
    text = "real images: class folders, .tar shards, Parquet or IDX files (default: those in the model's folder)"
    group.add_argument("--reference", metavar="DATA", help=text)
    text = (
        "the images that the model was trained on, to search for copies of them (default: those that its folder names)"
    )
    group.add_argument("--training", metavar="DATA", help=text)
    text = "an audited run of plain sampling, to compare with (default: the numbers stored with the model, if any)"
    group.add_argument("--against", metavar="OUT", help=text)
    text = "also train a small network on pixels, with and without the generated images (minutes on a CPU)"
    group.add_argument("--utility", action="store_true", help=text)
    text = (
        "efficientnet-lite0 (default), efficientnet-lite0-native, inception-v3, vgg16, dinov2-* or clip-*; =FILE names "
        "the file of its weights; may be repeated, the first one decides the main metrics"
    )
    group.add_argument("--extractor", action="append", metavar="NAME[=FILE]", help=text)
    text = "weights file of the first extractor (default: installed with rarefy, or downloaded)"
    group.add_argument("--extractor-weights", "--inception-weights", metavar="FILE", help=text)
    group.add_argument("--k", type=int, default=3, metavar="N", help="number of nearest neighbours (default 3)")
    text = "which real images are rare: avgknn (default), confidence or a file of their keys, one per line"
    group.add_argument("--tail", default="avgknn", help=text)
    text = "measure at most this many images (default 10,000)"
    group.add_argument("--limit", type=int, default=10_000, metavar="N", help=text)


def audit_options(arguments: argparse.Namespace) -> AuditOptions:
    """What ``run`` and ``audit`` have in common."""
    from rarefy.audit.audit import AuditOptions
    from rarefy.audit.features.extractors import DEFAULT_EXTRACTOR

    (extractor, weights), *further = [_named_weights(text) for text in arguments.extractor or [DEFAULT_EXTRACTOR]]
    return AuditOptions(
        extractor=extractor,
        extractor_weights=arguments.extractor_weights or weights,
        further_extractors=tuple(further),
        k=arguments.k,
        utility=arguments.utility,
        reference=arguments.reference,
        training=arguments.training,
        against=arguments.against,
        tail=arguments.tail,
        limit=arguments.limit,
        allow_plugins=allow_plugins(arguments),
    )


def _audit(arguments: argparse.Namespace) -> int:
    from rarefy.generate.progress import ProgressLine

    with ProgressLine() as line:
        line.waits("audit", "loading torch")
        from rarefy.audit.audit import run_audit
        from rarefy.audit.page.summary import figure, summary_lines
        from rarefy.audit.schema import AuditResult
        from rarefy.gates import load_gates
        from rarefy.shards.store import Store

        options = dataclasses.replace(
            audit_options(arguments),
            device=arguments.device,
            ray_address=arguments.ray_address,
            gates=load_gates(arguments.gates) if arguments.gates else None,
            model=arguments.model,
        )
        content = run_audit(Store(arguments.out), options, line.stages("audit"))
    result = AuditResult.from_json(content)
    lines = [
        f"{name}: {figure(entry.value)} (real baseline: {figure(entry.floor)})"
        for name, entry in result.metrics.items()
    ]
    print_result(arguments, content, "\n".join([*lines, *summary_lines(result)]))
    return audit_code(content)


def _named_weights(text: str) -> tuple[str, str | None]:
    """NAME or NAME=FILE."""
    name, _, path = text.partition("=")
    return name, path or None


def audit_code(result: dict[str, Any]) -> int:
    """The exit code for the content of metrics.json."""
    if result["verdict"] == "failed":
        return GATES_FAILED
    return INCOMPLETE_AUDIT if result["partial"] else OK


def _report(arguments: argparse.Namespace) -> int:
    from rarefy.shards.store import Store
    from rarefy.view.pages import write_pages

    pages = write_pages(Store(arguments.out), lambda line: print(f"rarefy: {line}", file=sys.stderr, flush=True))
    paths = {name: f"{arguments.out.rstrip('/')}/{rel}" for name, rel in pages.items()}
    return print_result(arguments, paths, "\n".join(paths.values()))


def _compare(arguments: argparse.Namespace) -> int:
    from rarefy.audit.compare import compare_runs
    from rarefy.audit.page.compare_page import table_text, write_page

    result = compare_runs(arguments.runs)
    write_page(result, arguments.page)
    content = dataclasses.asdict(result) | {"page": arguments.page}
    return print_result(arguments, content, f"{table_text(result)}\npage: {arguments.page}")
