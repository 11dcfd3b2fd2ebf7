"""The commands on a run's output: seal, select, verify and status. Heavy imports live in the handlers."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from rarefy.command_line import OK, OUT_HELP, PROBLEMS, add_command, print_result

EVERY_S = 10.0  # between two plain lines of commands that take a second for most runs


def add_output_commands(commands: Any) -> None:
    """Add the commands to the program's commands."""
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


def _add_select_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", help="where the run's model folder is now (default: where it was)")
    text = "fill up classes that have too few acceptable images with the best of their others"
    command.add_argument("--keep-exhausted", action="store_true", help=text)
    command.add_argument("--ray-address", help="Ray cluster that computes the features (default: this process)")
    command.add_argument("--device", default="cpu", help="for features and distances: cpu (default), cuda or cuda:N")


def _seal(arguments: argparse.Namespace) -> int:
    from rarefy.generate.progress import ProgressLine
    from rarefy.shards.store import Store
    from rarefy.stages import seal_run

    with ProgressLine() as line:
        sealed = seal_run(Store(arguments.out), arguments.repair, line.stages("seal", EVERY_S))
    text = f"sealed: {sealed.samples:,} images in {sealed.shards:,} shards, {sealed.size_bytes / 1e6:,.1f} MB"
    return print_result(arguments, dataclasses.asdict(sealed), text)


def _select(arguments: argparse.Namespace) -> int:
    from rarefy.generate.progress import ProgressLine

    with ProgressLine() as line:
        line.waits("select", "loading torch")
        from rarefy.select.stage import SelectOptions
        from rarefy.shards.store import Store
        from rarefy.stages import select

        names = [field.name for field in dataclasses.fields(SelectOptions)]
        options = SelectOptions(**{name: getattr(arguments, name) for name in names})
        selected = select(Store(arguments.out), options, line.stages("select"))
    return print_result(arguments, dataclasses.asdict(selected), selected.text())


def _verify(arguments: argparse.Namespace) -> int:
    from rarefy.generate.progress import ProgressLine
    from rarefy.shards.store import Store
    from rarefy.stages import verify_run

    with ProgressLine() as line:
        problems = verify_run(Store(arguments.out), line.stages("verify", EVERY_S))
    lines = [f"{name}: {line}" for name, lines in problems.items() for line in lines]
    print_result(arguments, {"problems": problems}, "\n".join(lines) or "all shards are complete and undamaged")
    return PROBLEMS if problems else OK


def _status(arguments: argparse.Namespace) -> int:
    from rarefy.shards.store import Store
    from rarefy.status import read_status

    status = read_status(Store(arguments.out))
    return print_result(arguments, dataclasses.asdict(status), status.text())
