"""The command ``rarefy export``. Heavy imports live in the handler."""

from __future__ import annotations

import argparse
from typing import Any

from rarefy.command_line import OUT_HELP, add_command, print_result

FORMATS = ("imagefolder", "npz", "parquet")  # a copy of those in rarefy.export.export, whose import is slow


def add_export(commands: Any) -> None:
    """Add the command to the program's commands."""
    command = add_command(commands, "export", _export, "write a finished data set in another format")
    command.add_argument("out", metavar="OUT", help=OUT_HELP)
    command.add_argument("dest", metavar="DEST", help="a new local folder; for npz, a new file")
    text = "class folders of PNG files (default), OpenAI's npz, or Parquet with images, as on the Hugging Face Hub"
    command.add_argument("--format", choices=FORMATS, default=FORMATS[0], help=text)
    text = "only images that satisfy a condition on their columns, such as 'confidence < 0.6' (default: all of them)"
    command.add_argument("--where", metavar="CONDITION", help=text)
    text = "also images that [accept] rejected and those on the exclusion list (default: neither)"
    command.add_argument("--all", action="store_true", help=text)


def _export(arguments: argparse.Namespace) -> int:
    from rarefy.export.export import export_run
    from rarefy.generate.progress import ProgressLine
    from rarefy.shards.store import Store

    store = Store(arguments.out)
    with ProgressLine() as line:
        wanted = arguments.format, arguments.where, arguments.all
        exported = export_run(store, arguments.dest, *wanted, progress=line.stages("export"))
    return print_result(arguments, exported.content(), exported.text())
