"""The command line: the parser of all commands, and exit codes. The commands are in files of their own, by theme."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import sys
import traceback
from collections.abc import Sequence

from rarefy import __version__
from rarefy.audit_commands import add_audit_commands
from rarefy.command_line import GROUPS, TRY_AGAIN, USER_ERROR, Handler, Parser, Style
from rarefy.completion_command import add_completion
from rarefy.doctor_command import add_doctor
from rarefy.errors import RarefyError, StorageError, TemporaryError
from rarefy.export_command import add_export
from rarefy.extras import missing_package
from rarefy.import_command import add_import
from rarefy.interrupts import sigterm_interrupts
from rarefy.model_commands import add_model_commands
from rarefy.output_commands import add_output_commands
from rarefy.project_commands import add_project_commands
from rarefy.push_command import add_push
from rarefy.run_commands import add_run_commands
from rarefy.view_command import add_view

READER_GONE = 128 + signal.SIGPIPE  # what a shell says of a program that SIGPIPE ended
UNFORESEEN = 70  # EX_SOFTWARE of sysexits.h; a traceback that Python prints would exit with 1, which means damage
DESCRIPTION = "Audited data sets of rare images from a diffusion model, which may be trained on your own images."
JOURNEY = """from a folder of images to an audited set of rare ones:
  rarefy init photos/ --out mine
  rarefy train mine/train.toml
  rarefy run mine/rare.toml --out out/rare

rarefy COMMAND --help has examples of each command.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0: success; 1: verify or doctor found problems; 2: a user's error (one line on stderr); 3: a gate failed; 5: the
    audit is incomplete; 70: a fault of rarefy's own, with a traceback; 75: a fault that is not the user's, try again;
    130: Ctrl-C; 141: nobody reads the output any more; 143: SIGTERM.
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
    """Run a command. Its output is flushed here, where a reader that has gone can still be handled.

    With --json only the result goes to stdout, whatever libraries print.
    """
    arguments = make_parser().parse_args(argv)
    handler: Handler = arguments.handler
    arguments.stdout = sys.stdout
    try:
        with contextlib.redirect_stdout(sys.stderr) if getattr(arguments, "json", False) else contextlib.nullcontext():
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


class _MainParser(Parser):
    """Its help lists the commands by group, in the order of the journey."""

    def format_help(self) -> str:
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, [])
        formatter.add_text(self.description)
        commands, *options = sorted(self._actions, key=lambda action: not action.choices)
        listed = {action.dest: action for action in commands._get_subactions()}  # type: ignore[attr-defined]
        for title, names in GROUPS.items():
            _add_section(formatter, title, [listed.pop(name) for name in names if name in listed])
        _add_section(formatter, "others", list(listed.values()))
        _add_section(formatter, "options", options)
        formatter.add_text(self.epilog)
        return formatter.format_help()


def _add_section(formatter: argparse.HelpFormatter, title: str, actions: Sequence[argparse.Action]) -> None:
    formatter.start_section(title)
    formatter.add_arguments(actions)
    formatter.end_section()  # an empty section is not shown


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each command sets ``handler``."""
    parser = _MainParser(prog="rarefy", description=DESCRIPTION, epilog=JOURNEY, formatter_class=Style)
    parser.add_argument("--version", action="version", version=f"rarefy {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)

    add_project_commands(commands)
    add_import(commands)
    add_run_commands(commands)
    add_output_commands(commands)
    add_audit_commands(commands)
    add_view(commands)
    add_export(commands)
    add_model_commands(commands)
    add_push(commands)
    add_doctor(commands)
    add_completion(commands, make_parser)
    return parser
