"""The command ``rarefy push``. Heavy imports live in the handler."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from typing import Any

from rarefy.command_line import add_command, print_result

EVERY_S = 10.0  # between two plain lines while the files are checked


def add_push(commands: Any) -> None:
    """Add the command to the program's commands."""
    text = "send a sealed data set or a model folder to the Hugging Face Hub; goes on after an interruption"
    command = add_command(commands, "push", _push, text)
    command.add_argument("source", metavar="OUT", help="a run's output, or a model folder; local or an fsspec URL")
    command.add_argument("name", metavar="ORG/NAME", help="the repository, made if it is not there")
    command.add_argument("--private", action="store_true", help="make the repository private")
    command.add_argument(
        "--revision", metavar="BRANCH", help="branch to push to, made if it is not there (default: main)"
    )
    command.add_argument("--dry-run", action="store_true", help="list the files and show the card; send nothing")
    text = "also send the real images in a model folder (default: they stay here)"
    command.add_argument("--real-images", action="store_true", help=text)
    text = "delete everything else that is in the repository"
    command.add_argument("--replace", action="store_true", help=text)
    command.add_argument("--endpoint", metavar="URL", help="another Hub (default: HF_ENDPOINT or the public one)")
    command.epilog = f"{command.epilog}\nThe token is that of `hf auth login`, or HF_TOKEN. See docs/PUBLISH.md.\n"


def _push(arguments: argparse.Namespace) -> int:
    if arguments.endpoint is not None:
        os.environ["HF_ENDPOINT"] = arguments.endpoint  # older versions of the library read it only when imported
    from rarefy.generate.progress import ProgressLine
    from rarefy.publish.content import read_content
    from rarefy.publish.hub import Target, check_name
    from rarefy.publish.push import preview, push

    check_name(arguments.name)
    with ProgressLine() as line:
        content = read_content(arguments.source, arguments.real_images, line.stages("push", EVERY_S))
    if arguments.dry_run:
        files = [{"path": file.path, "size_bytes": file.size_bytes} for file in content.files]
        result = {
            "kind": content.kind,
            "files": files,
            "size_bytes": content.size_bytes,
            "card": content.card,
            "left_out": list(content.left_out),
            "notes": list(content.notes),
        }
        return print_result(arguments, result, preview(content, arguments.name))
    target = Target(arguments.name, content.kind, arguments.private, arguments.revision, arguments.endpoint)
    pushed = push(content, target, _tell, arguments.replace)
    return print_result(arguments, dataclasses.asdict(pushed), pushed.text())


def _tell(stage: str, done: int, total: int) -> None:
    """One line per commit; on a terminal the Hub's library also shows the bytes."""
    print(f"push: {stage} {done}/{total}", file=sys.stderr, flush=True)
