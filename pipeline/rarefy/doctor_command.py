"""The command ``rarefy doctor``. Heavy imports live in the handler."""

from __future__ import annotations

import argparse
import dataclasses
from functools import partial
from typing import Any

from rarefy.command_line import OK, PROBLEMS, add_command, print_result


def add_doctor(commands: Any) -> None:
    """Add the command to the program's commands."""
    text = "check versions, compiler, GPUs, memory, disks and caches, and say what to do; exits with 1 for a problem"
    command = add_command(commands, "doctor", _doctor, text)
    command.add_argument(
        "--out", metavar="URL", help="also write, read, list and delete a probe file there (default: none)"
    )
    command.add_argument("--ray", action="store_true", help="also start a local Ray (several seconds)")
    command.add_argument("--ray-address", help="also connect to this Ray cluster, e.g. auto (default: none)")


def _doctor(arguments: argparse.Namespace) -> int:
    from rarefy.doctor.doctor import WIDTH, DoctorOptions, examine, summary
    from rarefy.generate.progress import ProgressLine

    checks, options = [], DoctorOptions(arguments.out, arguments.ray, arguments.ray_address)
    with ProgressLine() as line:
        for check in examine(options, partial(line.waits, "doctor")):
            line.close()  # both may be the same terminal
            checks.append(check)
            if not arguments.json:
                print(check.line(WIDTH), flush=True)
    problems = sum(check.state == "problem" for check in checks)
    result = {"problems": problems, "checks": [dataclasses.asdict(check) for check in checks]}
    print_result(arguments, result, summary(checks))
    return PROBLEMS if problems else OK
