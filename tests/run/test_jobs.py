"""Jobs: what they name exists, a user's error is told before anything starts, and exit codes reach the caller."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from faults.processes import descendants
from ray.job_submission import JobStatus

from jobs import submit
from rarefy import job
from rarefy.errors import ManifestError, OutputError

REPO = Path(__file__).parents[2]
MANIFEST = """
name = "tiny"
[model]
preset = "fashion-mnist-28"
[sampler]
steps = {steps}
batch = 2
[classes]
per_class = 2
[output]
shard_size = 2
"""


@pytest.mark.parametrize(
    ("name", "out", "start"),
    [
        ("generate", "/none/out", "rarefy: error: manifest: 'none.toml'"),
        ("run", "out/rare", "rarefy: error: out: 'out/rare' is not a URL"),
    ],
)
def test_entry_points_report_a_users_error_in_one_line(name: str, out: str, start: str, tmp_path: Path) -> None:
    command = [sys.executable, str(REPO / "jobs" / f"{name}.py"), "none.toml", "--out", out]
    environment = {"PYTHONPATH": str(REPO / "pipeline")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(start)
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_only_temporary_failures_are_tried_again(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    for codes, result in (([2], 2), ([75, 75, 3], 3), ([75, 0], 0), ([130], 130), ([75] * job.TRIES, 75)):
        left, waits = list(codes), list[float]()
        monkeypatch.setattr(job, "main", lambda words, left=left: left.pop(0))
        assert job.run_job("run", ["m.toml", "--out", "s3://bucket/run"], waits.append) == result
        assert not left
        assert len(waits) == len(codes) - 1
        assert all(wait <= job.LONGEST_WAIT_S for wait in waits)
    assert waits[3] > 4 * waits[0]
    assert f"attempt 2 of {job.TRIES} in" in capsys.readouterr().err


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM])
def test_a_wait_is_interrupted_in_one_line(way: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(job, "main", lambda words: 75)
    # A shell's background jobs ignore SIGINT, and so would this test.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert job.run_job("run", ["m.toml", "--out", "/o"], lambda seconds: signal.raise_signal(way)) == 128 + way
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.splitlines()[1:] == [
        "rarefy: interrupted; finished work is kept, run the same command to resume"
    ]


@pytest.mark.parametrize("out", ["out", "./out", "../out", "s3:/bucket", "file://out", "local://out", "memory://out"])
def test_a_relative_output_is_refused(out: str) -> None:
    with pytest.raises(OutputError, match="out: "):
        job.check_out(out)


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ('[model]\npath = "model"', "model.path: 'model'"),
        ('[model]\nname = "x"\nclassifier = "../c.safetensors"', "model.classifier: '../c.safetensors'"),
        ('[model]\nname = "x"\n[classes]\nfill = { data = "photos/" }', "classes.fill.data: 'photos/'"),
        ('[model]\npath = "file://model"', "model.path: 'file://model'"),
        ("[model", "manifest: "),
        ("a = " + "[" * 10_000, "manifest: "),
    ],
)
def test_paths_that_a_job_would_not_find_are_refused(tmp_path: Path, table: str, named: str) -> None:
    path = tmp_path / "m.toml"
    path.write_text(table)
    with pytest.raises(ManifestError, match=named):
        submit.check_manifest(path)


def test_paths_that_all_machines_share_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_text('[model]\npath = "s3://bucket/model"\n[classes]\nfill = { data = "/shared/photos" }')
    submit.check_manifest(path)


@dataclass
class Client:
    """A stand-in for Ray's client. texts: a job's output in pieces; breaks: how many connections end early."""

    status: JobStatus = JobStatus.SUCCEEDED
    driver_exit_code: int | None = 0
    message: str = "lost\nits node"
    texts: tuple[str, ...] = ("one\ntw", "o\n", "three\n")
    breaks: int = 0
    submitted: dict[str, Any] = field(default_factory=dict)
    folder: dict[str, str] = field(default_factory=dict)

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        for number, text in enumerate(self.texts):
            if self.breaks > 0 and number == self.breaks:
                self.breaks -= 1
                raise RuntimeError("closed unexpectedly")
            yield text

    def get_job_status(self, job_id: str) -> JobStatus:
        return self.status

    def get_job_info(self, job_id: str) -> Client:
        return self

    def submit_job(self, entrypoint: str, runtime_env: dict[str, Any]) -> str:
        self.submitted = {"entrypoint": entrypoint}
        folder = Path(runtime_env["working_dir"])
        self.folder = {str(f.relative_to(folder)): f.read_text() for f in folder.rglob("*") if f.is_file()}
        return "raysubmit_1"


@pytest.mark.parametrize(
    ("status", "code", "result"),
    [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", 75, 75), ("FAILED", None, 1), ("STOPPED", None, 143)],
)
def test_follow_returns_the_exit_code_of_the_job(status: str, code: int | None, result: int, capsys: Any) -> None:
    assert submit.follow(Client(JobStatus(status), code), "raysubmit_1") == result  # type: ignore[arg-type]
    shown = capsys.readouterr()
    assert shown.out == "one\ntwo\nthree\n"
    assert ("lost its node" in shown.err) == (code is None and status == "FAILED")


def test_output_is_printed_once_although_the_connection_breaks(capsys: Any) -> None:
    assert submit.follow(Client(breaks=2), "raysubmit_1") == 0  # type: ignore[arg-type]
    assert capsys.readouterr().out == "one\ntwo\nthree\n"


class Gone(Client):
    """A cluster that has stopped answering; ``ended``: only its logs cannot be had, the job has ended."""

    ended = False

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        raise aiohttp.ClientConnectionError
        yield ""

    def get_job_status(self, job_id: str) -> JobStatus:
        if not self.ended:
            raise RuntimeError("no answer")
        return self.status


@pytest.mark.parametrize("ended", [False, True])
def test_a_cluster_that_stops_answering_ends_the_following(
    ended: bool, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    client = Gone()
    client.ended = ended
    monkeypatch.setattr(submit, "_client", lambda address: client)
    monkeypatch.setattr(submit._patiently, "sleep", lambda seconds: None)
    assert submit.main(["follow", "raysubmit_1"]) == (0 if ended else 75)
    error = capsys.readouterr().err
    assert error == ("submit: job raysubmit_1 succeeded\n" if ended else
                     "submit: error: the cluster does not answer (no answer)\n")  # fmt: skip


def test_manifest_and_modules_travel_with_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "terms"
    package.mkdir()
    (package / "__init__.py").write_text("A = 1\n")
    (tmp_path / "nets.py").write_text("B = 2\n")
    (tmp_path / "m.toml").write_text(MANIFEST.format(steps=4))
    client = Client()
    monkeypatch.setattr(submit, "_client", lambda address: client)
    monkeypatch.chdir(tmp_path)
    words = ["--no-wait", "--with", "terms", "--with", "nets.py", "run", "./m.toml", "--out", "s3://b/run", "--json"]
    assert submit.main(words) == 0
    assert client.submitted["entrypoint"] == "python -m rarefy.job run m.toml --out s3://b/run --json"
    assert sorted(client.folder) == ["m.toml", "nets.py", "terms/__init__.py"]
    assert client.folder["m.toml"] == MANIFEST.format(steps=4)


def test_a_manifest_that_ships_travels_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client()
    monkeypatch.setattr(submit, "_client", lambda address: client)
    monkeypatch.chdir(tmp_path)
    assert submit.main(["--no-wait", "run", "demo", "--out", "s3://b/run"]) == 0
    assert client.submitted["entrypoint"] == "python -m rarefy.job run demo.toml --out s3://b/run"
    assert client.folder == {"demo.toml": (REPO / "manifests" / "demo.toml").read_text()}


def test_a_module_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(submit, "_client", lambda address: Client())
    (tmp_path / "m.toml").write_text(MANIFEST.format(steps=4))
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "gone.py").symlink_to(tmp_path / "nowhere")
    for module in ("none.py", "package"):
        words = ["--with", str(tmp_path / module), "run", str(tmp_path / "m.toml"), "--out", "/o"]
        assert submit.main(words) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"submit: error: --with: '{tmp_path / module}' is not a readable file or folder: ")
        assert error.count("\n") == 1


def test_a_users_error_is_told_before_a_job_is_submitted(tmp_path: Path, capsys: Any) -> None:
    manifest = tmp_path / "m.toml"
    manifest.write_text(MANIFEST.format(steps=4))
    for words, start in (
        (["run", str(manifest), "--out", "rel"], "submit: error: out: 'rel' is not"),
        (["run", str(tmp_path / "none.toml"), "--out", "/o"], "submit: error: manifest: "),
        (["generate", str(manifest), "--out", "/o", "--actor", "x"], "submit: error: "),
        (["--adress", "x", "run", str(manifest), "--out", "/o"], "submit: error: "),
        (["stop"], "submit: error: job: ''"),
        (["--address", "http://127.0.0.1:9", "stop", "x"], "submit: error: address: 'http://127.0.0.1:9'"),
    ):
        assert submit.main(words) == 2
        error = capsys.readouterr().err
        assert error.startswith(start), error
        assert error.count("\n") == 1


@pytest.fixture
def head(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment that reaches a head with dashboard and token authentication, which ends after the test."""
    folder = Path("/tmp") / f"rfh-{secrets.token_hex(4)}"  # Ray's socket paths must be short
    port = _free_port()
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(REPO / "pipeline"),
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}",
        "RAY_JOB_STOP_WAIT_TIME_S": "10",
    }
    environment.pop("RAY_ADDRESS", None)
    command = ["ray", "start", "--head", "--block", "--port=0", f"--dashboard-port={port}", "--num-cpus=2"]
    command += ["--include-dashboard=true", "--dashboard-agent-listen-port=0", f"--temp-dir={folder}"]
    command += ["--object-store-memory=100000000", "--disable-usage-stats"]
    log = (tmp_path / "head.log").open("w")
    server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_for_dashboard(server, port, tmp_path / "head.log")
        yield environment
    finally:
        below = descendants(server.pid)
        server.terminate()
        for pid in [*below, server.pid]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        server.wait(30)
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    """Below Linux's ephemeral ports, of which one may be taken at any time, and above those of Ray's workers."""
    while True:
        port = 20_000 + secrets.randbelow(8_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def _wait_for_dashboard(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """As long as the head lives: how soon it answers depends on what else this machine does."""
    while server.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api/version", timeout=5)
        except urllib.error.HTTPError as error:
            assert error.code == 401  # without the token
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text()[-2000:])


@pytest.mark.slow(45)
def test_jobs_on_a_real_head(head: dict[str, str], tmp_path: Path) -> None:
    """One is followed to its success, another is stopped; both with the exit codes that a caller needs."""
    script, out = str(REPO / "jobs" / "submit.sh"), tmp_path / "out"
    for name, steps in (("short", 2), ("long", 990)):
        (tmp_path / f"{name}.toml").write_text(MANIFEST.format(steps=steps))

    def command(*words: str) -> list[str]:
        return [script, *words]

    flags = ["--actors", "1", "--cpus-per-actor", "1"]
    options: dict[str, Any] = {"env": head, "cwd": tmp_path, "text": True}
    long_command = command("--no-wait", "generate", "long.toml", "--out", str(tmp_path / "never"), *flags)
    for _ in range(10):
        done = subprocess.run(long_command, capture_output=True, check=False, **options)
        if done.returncode != 75:  # a head that has only just started may not answer yet
            break
        time.sleep(2)
    assert done.returncode == 0, done.stderr
    long = done.stdout.strip()
    done = subprocess.run(command("stop", long), capture_output=True, check=False, **options)
    assert done.returncode == 0, done.stderr
    assert "stopped" in done.stderr
    done = subprocess.run(command("follow", long), capture_output=True, check=False, **options)
    assert done.returncode == 143, done.stderr
    short = command("generate", "short.toml", "--out", str(out), *flags)
    done = subprocess.run(short, capture_output=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "made 20 of 20 images" in done.stdout
    assert len(list((out / "shards").glob("*.tar"))) == 10
    assert not (tmp_path / "never" / "_SUCCESS").exists()
