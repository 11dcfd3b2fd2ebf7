"""The commands that measure and show a run: audit, report and compare. Heavy imports live in the handlers."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Any

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
    text = "real images: class folders, .tar shards, Parquet or IDX files (default: those in the model's folder)"
    command.add_argument("--reference", metavar="DATA", help=text)
    add_audit_arguments(command)
    command.add_argument("--model", help="where the run's model folder is now, if it has moved")
    text = (
        "efficientnet-lite0 (default), efficientnet-lite0-native, inception-v3, vgg16, dinov2-* or clip-*; =FILE names "
        "the file of its weights; may be repeated, the first one decides the main metrics"
    )
    command.add_argument("--extractor", action="append", metavar="NAME[=FILE]", help=text)
    text = "weights file of the first extractor (default: installed with rarefy, or downloaded)"
    command.add_argument("--extractor-weights", "--inception-weights", metavar="FILE", help=text)
    command.add_argument("--k", type=int, default=3, metavar="N", help="number of nearest neighbours (default 3)")
    text = "which real images are rare: avgknn (default), confidence or a file of their keys, one per line"
    command.add_argument("--tail", default="avgknn", help=text)
    command.add_argument("--limit", type=int, default=10_000, help="measure at most this many images (default 10,000)")
    command.add_argument("--gates", metavar="FILE", help="TOML file whose [gates] replace those of the run's manifest")
    command.add_argument("--ray-address", help="Ray cluster that computes the features (default: this process)")
    command.add_argument("--device", default="cpu", help="for features and distances: cpu (default), cuda or cuda:N")
    add_plugins(command)


def add_audit_arguments(command: argparse.ArgumentParser) -> None:
    """Add what ``run`` and ``audit`` have in common."""
    text = (
        "the images that the model was trained on, to search for copies of them (default: those that its folder names)"
    )
    command.add_argument("--training", metavar="DATA", help=text)
    text = "an audited run of plain sampling, to compare with (default: the numbers stored with the model, if any)"
    command.add_argument("--against", metavar="OUT", help=text)
    text = "also train a small network on pixels, with and without the generated images (minutes on a CPU)"
    command.add_argument("--utility", action="store_true", help=text)


def _audit(arguments: argparse.Namespace) -> int:
    from rarefy.audit.audit import AuditOptions, run_audit
    from rarefy.audit.features.extractors import DEFAULT_EXTRACTOR
    from rarefy.audit.page.summary import figure, summary_lines
    from rarefy.audit.schema import AuditResult
    from rarefy.gates import load_gates
    from rarefy.generate.progress import stage_line
    from rarefy.shards.store import Store

    (extractor, weights), *further = [_named_weights(text) for text in arguments.extractor or [DEFAULT_EXTRACTOR]]
    options = AuditOptions(
        extractor=extractor,
        extractor_weights=arguments.extractor_weights or weights,
        further_extractors=tuple(further),
        k=arguments.k,
        utility=arguments.utility,
        device=arguments.device,
        reference=arguments.reference,
        training=arguments.training,
        against=arguments.against,
        tail=arguments.tail,
        limit=arguments.limit,
        ray_address=arguments.ray_address,
        gates=load_gates(arguments.gates) if arguments.gates else None,
        model=arguments.model,
        allow_plugins=allow_plugins(arguments),
    )
    content = run_audit(Store(arguments.out), options, stage_line)
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
