"""Runs a command as a job on a Ray cluster: ``python -m rarefy.job run MANIFEST --out OUT``.

It differs from the command line in three ways. It uses the cluster that the job runs on, refuses a relative OUT (a job
runs in a folder of Ray's, which is deleted later), and waits and tries again after a temporary failure, because a
scheduler that restarts failed jobs cannot tell a temporary failure from a user's mistake.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

import tenacity

from rarefy.cli import interrupted, main, make_parser
from rarefy.command_line import TRY_AGAIN, USER_ERROR
from rarefy.errors import OutputError, RarefyError, bad
from rarefy.interrupts import sigterm_interrupts

COMMANDS = ("run", "generate")
TRIES = 20  # with the waits below, about four hours
FIRST_WAIT_S, LONGEST_WAIT_S = 30.0, 900.0


def is_shared(path: str) -> bool:
    """Whether a path can mean the same on every machine: an absolute path, or a URL that is not of this process."""
    protocol, _, rest = path.rpartition("://")
    if protocol in ("", "file", "local"):
        return PurePosixPath(rest).is_absolute()
    return protocol != "memory"


def check_out(out: str) -> None:
    """Raise OutputError unless ``out`` can mean the same folder on every machine."""
    if not is_shared(out):
        allowed = "a URL such as s3://bucket/folder or the absolute path of a folder that all machines share"
        raise OutputError(bad("out", out, allowed))


def run_job(command: str, arguments: Sequence[str], sleep: Callable[[float], None] = tenacity.nap.sleep) -> int:
    """Run ``rarefy COMMAND ARGUMENTS`` on this job's cluster until it ends for good; returns its exit code."""
    words = [command, "--ray-address", "auto", *arguments]
    try:
        check_out(make_parser().parse_args(words).out)
    except RarefyError as error:
        print(f"rarefy: error: {error}", file=sys.stderr)
        return USER_ERROR
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_result(lambda code: code == TRY_AGAIN),
        wait=tenacity.wait_exponential_jitter(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
        stop=tenacity.stop_after_attempt(TRIES),
        before_sleep=_announce,
        retry_error_callback=lambda state: TRY_AGAIN,
        sleep=sleep,
    )
    with sigterm_interrupts() as received:  # while waiting, too
        try:
            return int(retrying(main, words))
        except KeyboardInterrupt as interrupt:
            return interrupted(received, interrupt)


def _announce(state: tenacity.RetryCallState) -> None:
    assert state.next_action is not None
    wait = f"in {state.next_action.sleep:.0f} s"
    print(f"rarefy: this failure is temporary; attempt {state.attempt_number + 1} of {TRIES} {wait}", file=sys.stderr)


if __name__ == "__main__":
    if not sys.argv[1:] or sys.argv[1] not in COMMANDS:
        print("usage: python -m rarefy.job run|generate MANIFEST --out OUT [flags]", file=sys.stderr)
        sys.exit(USER_ERROR)
    sys.exit(run_job(sys.argv[1], sys.argv[2:]))
