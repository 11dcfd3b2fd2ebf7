"""Submits a run to a Ray cluster, follows it and returns its exit code; or stops it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import aiohttp
import tenacity
from ray.job_submission import JobStatus, JobSubmissionClient

from rarefy.cli import make_parser
from rarefy.command_line import TRY_AGAIN, USER_ERROR
from rarefy.errors import ManifestError, RarefyError, bad
from rarefy.fields import parse_toml
from rarefy.job import COMMANDS, check_out, is_shared
from rarefy.shipped import find_manifest

INTERRUPTED, STOPPED = 130, 143
POLL_S = 0.5
LAST_TRIES = 5  # to get the rest of the output of a job that has ended
ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # Ray looks there, too, in this order
EPILOG = """examples:
  export RAY_API_SERVER_ADDRESS=http://HEAD:8265
  jobs/submit.sh run mine/rare.toml --out s3://bucket/rare --gpus-per-actor 1
  jobs/submit.sh --with my_terms.py generate mine/rare.toml --out s3://bucket/rare
  jobs/submit.sh follow raysubmit_XXXX
  jobs/submit.sh stop raysubmit_XXXX
The exit code is the command's own; 143: the job was stopped; 130: Ctrl-C, which does
not stop the job; 75: the cluster no longer answers, follow the job later.
Submit again to resume a run: committed shards are kept."""
PATHS = (("model", "path"), ("model", "checkpoint"), ("model", "classifier"), ("classes", "fill", "data"))
# A call that fails while a job is followed is repeated for about a minute.
_patiently = tenacity.Retrying(
    retry=tenacity.retry_if_exception_type((RuntimeError, OSError)),
    wait=tenacity.wait_exponential(max=15),
    stop=tenacity.stop_after_attempt(8),
    reraise=True,
)


class _Parser(argparse.ArgumentParser):
    """Reports an argument error in one line, like every other error."""

    def error(self, message: str) -> NoReturn:
        raise RarefyError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``jobs/submit.sh`` and return its exit code."""
    try:
        known, words = _make_parser().parse_known_args(argv)
        return _act(known, words)
    except RarefyError as error:
        print(f"submit: error: {error}", file=sys.stderr)
        return USER_ERROR
    except (RuntimeError, OSError) as error:
        print(f"submit: error: the cluster does not answer ({' '.join(str(error).split())[:300]})", file=sys.stderr)
        return TRY_AGAIN
    except KeyboardInterrupt:
        print("submit: interrupted", file=sys.stderr)
        return INTERRUPTED


def _make_parser() -> argparse.ArgumentParser:
    style = argparse.RawDescriptionHelpFormatter
    parser = _Parser("jobs/submit.sh", description=__doc__, epilog=EPILOG, formatter_class=style)
    text = "of the head's dashboard, http://HEAD:8265 (default: RAY_API_SERVER_ADDRESS or RAY_ADDRESS)"
    parser.add_argument("--address", help=text)
    text = "a module or package of your own (a guidance term, a network) that travels with the job; may be repeated"
    parser.add_argument("--with", dest="modules", metavar="FILE", action="append", default=[], help=text)
    parser.add_argument("--no-wait", action="store_true", help="print the job's id on stdout and do not follow it")
    parser.add_argument("action", choices=(*COMMANDS, "follow", "stop"))
    text = "arguments of rarefy run or generate, or the id of a job"
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="...", help=text)
    return parser


def _act(known: argparse.Namespace, unknown: Sequence[str]) -> int:
    words: list[str] = known.words
    if unknown:
        raise ManifestError(bad("option", unknown[0], "an option of jobs/submit.sh; flags of rarefy go after run"))
    if known.action in COMMANDS:
        arguments = make_parser().parse_args([known.action, *words])
        check_out(arguments.out)
        manifest = find_manifest(arguments.manifest)
        check_manifest(manifest)
        client = _client(known.address)
        words = [manifest.name if word == arguments.manifest else word for word in words]
        job = _submit(client, known.action, words, manifest, known.modules)
        print(f"submit: job {job} is submitted; stop it with: jobs/submit.sh stop {job}", file=sys.stderr, flush=True)
        if not known.no_wait:
            return follow(client, job)
        print(job)
        return 0
    if len(words) != 1:
        raise ManifestError(bad("job", " ".join(words), "the id of one job"))
    client = _client(known.address)
    _find(client, words[0])
    return follow(client, words[0]) if known.action == "follow" else stop(client, words[0])


def check_manifest(path: Path) -> None:
    """Raise ManifestError unless the manifest can be read and its paths mean the same on every machine."""
    try:
        table = parse_toml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ManifestError(bad("manifest", str(path), f"a readable TOML file: {reason}")) from None
    for keys in PATHS:
        written: Any = table
        for key in keys:
            written = written.get(key) if isinstance(written, dict) else None
        if isinstance(written, str) and not is_shared(written):
            allowed = "a URL or an absolute path that all machines share; a job does not see the folder you submit from"
            raise ManifestError(bad(".".join(keys), written, allowed))


def _client(address: str | None) -> JobSubmissionClient:
    address = address or next((value for name in ADDRESSES if (value := os.environ.get(name))), None)
    try:
        return JobSubmissionClient(address)
    except (RuntimeError, ValueError, OSError) as cause:
        reason = " ".join(str(cause).split())[:300]
        raise RarefyError(bad("address", address, f"the dashboard of a Ray cluster that answers ({reason})")) from None


def _submit(client: JobSubmissionClient, command: str, words: list[str], manifest: Path, modules: list[str]) -> str:
    """Submit the job with the manifest and the modules as its working folder; returns its id."""
    entrypoint = ["python", "-m", "rarefy.job", command, *words]
    with tempfile.TemporaryDirectory(prefix="rarefy-submit-") as folder:
        shutil.copyfile(manifest, Path(folder) / manifest.name)
        for module in map(Path, modules):
            _copy_module(module, Path(folder) / module.name)
        # Ray uploads the folder before this returns.
        return client.submit_job(entrypoint=shlex.join(entrypoint), runtime_env={"working_dir": folder})


def _copy_module(source: Path, target: Path) -> None:
    if target.exists():
        raise ManifestError(bad("--with", str(source), "a name of its own: another file of the job has it"))
    try:
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, target)
    except OSError as error:
        reason = error.strerror or "some of its files cannot be read"
        raise ManifestError(bad("--with", str(source), f"a readable file or folder: {reason}")) from None


def _find(client: JobSubmissionClient, job: str) -> Any:
    try:
        return client.get_job_info(job)
    except RuntimeError:
        raise RarefyError(bad("job", job, "a job of this cluster")) from None


def follow(client: JobSubmissionClient, job: str) -> int:
    """Print the job's output until it ends; returns the exit code of its command."""
    output = _Output(client, job)
    try:
        while not _patiently(client.get_job_status, job).is_terminal():
            output.show()
            time.sleep(POLL_S)
        for _ in range(LAST_TRIES):
            output.show()
    except KeyboardInterrupt:
        print(f"submit: job {job} goes on; stop it with: jobs/submit.sh stop {job}", file=sys.stderr)
        return INTERRUPTED
    return _report_end(client, job)


def _report_end(client: JobSubmissionClient, job: str) -> int:
    """Say how a job has ended; returns the exit code of its command."""
    info = _patiently(client.get_job_info, job)
    print(f"submit: job {job} {info.status.lower()}", file=sys.stderr)
    if info.status == JobStatus.SUCCEEDED:
        return 0
    if info.status == JobStatus.STOPPED:
        return STOPPED
    if info.driver_exit_code is None:  # it never ran, or Ray lost it
        print(f"submit: {' '.join((info.message or 'no reason given').split())}", file=sys.stderr)
    return info.driver_exit_code or 1


class _Output:
    """Prints a job's output once, although each connection starts at its beginning.

    complete: whether a connection has lasted until Ray ended it, which it does when the job ends.
    """

    def __init__(self, client: JobSubmissionClient, job: str) -> None:
        self.client, self.job = client, job
        self.complete, self.characters = False, 0

    def show(self) -> None:
        """Print new output until the job ends or the connection breaks."""
        if self.complete:
            return
        # If the connection breaks, the caller connects again.
        with contextlib.suppress(RuntimeError, OSError, aiohttp.ClientError):
            asyncio.run(self._tail())
            self.complete = True

    async def _tail(self) -> None:
        passed = 0
        async for text in self.client.tail_job_logs(self.job):
            new = text[max(0, self.characters - passed) :]
            passed += len(text)
            self.characters = max(self.characters, passed)
            print(new, end="", flush=True)


def stop(client: JobSubmissionClient, job: str) -> int:
    """Stop the job and wait until it has ended. Committed shards are kept."""
    client.stop_job(job)
    while not _patiently(client.get_job_status, job).is_terminal():
        time.sleep(POLL_S)
    _report_end(client, job)
    return 0


if __name__ == "__main__":
    logging.disable(logging.INFO)  # Ray tells about its connections
    sys.exit(main())
