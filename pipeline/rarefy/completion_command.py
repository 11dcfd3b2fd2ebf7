"""The command ``rarefy completion``: a script that lets a shell complete rarefy's commands, options and files."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

from rarefy.command_line import add_command, print_result

SHELLS = ("bash", "zsh", "fish", "tcsh")
FILES = ("MANIFEST", "RECIPE", "FILE", "DATA")  # DATA may be a folder, which shells complete as well
FOLDERS = ("OUT", "DIR", "PATH")


def add_completion(commands: Any, make_parser: Callable[[], argparse.ArgumentParser]) -> None:
    """Add the command to the program's commands. make_parser: makes the parser of all of them."""
    text = "print a script that lets your shell complete rarefy's commands, options and files"
    command = add_command(commands, "completion", lambda arguments: _completion(arguments, make_parser()), text)
    command.add_argument("shell", metavar="SHELL", choices=SHELLS, help=f"one of {', '.join(SHELLS)}")


def _completion(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    import shtab

    for action in _actions(parser):
        what = action.metavar or action.dest.upper()
        if what in FILES or what in FOLDERS:
            action.complete = shtab.FILE if what in FILES else shtab.DIRECTORY  # type: ignore[attr-defined]
    script = shtab.complete(parser, arguments.shell)
    return print_result(arguments, {"shell": arguments.shell, "script": script}, script)


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All arguments of a parser and of its subcommands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
