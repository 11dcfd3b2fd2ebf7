"""Where the faults happen: a Ray of several raylets on this machine, an S3 stand-in, outputs, and drivers."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
from ray.cluster_utils import Cluster

from benchmarks.s3 import StandIn
from faults.processes import actors

REPO = Path(__file__).parents[2]
BUCKET = "bucket"
NODES = 2  # each with one CPU, so that each has one actor
PATIENCE_S = 150.0  # for one session
MANIFEST = """
name = "faults"
[model]
preset = "fashion-mnist-28"
[sampler]
steps = {steps}
batch = 2
[classes]
per_class = {per_class}
[output]
shard_size = 2
"""


@dataclass
class Output:
    """One run's output. files() reads past the proxy."""

    root: str
    fs: Any
    path: str

    def names(self, folder: str = "") -> list[str]:
        """Paths below ``folder``, relative to the output, in order."""
        full = f"{self.path}/{folder}".rstrip("/")
        found = self.fs.find(full) if self.fs.exists(full) else []
        return sorted(name[len(self.path) :].lstrip("/") for name in found)

    def read(self, rel: str) -> bytes:
        return bytes(self.fs.cat_file(f"{self.path}/{rel}"))

    def write(self, rel: str, data: bytes) -> None:
        self.fs.pipe_file(f"{self.path}/{rel}", data)

    def delete(self, rel: str) -> None:
        self.fs.rm_file(f"{self.path}/{rel}")

    def committed(self) -> int:
        """Number of markers."""
        return sum(re.fullmatch(r"state/rare-\d+\.json", name) is not None for name in self.names("state"))


@dataclass
class Session:
    """One driver process. struck: the exit codes that are right after what was done to it, besides 0."""

    process: subprocess.Popen[bytes]
    folder: Path
    struck: set[int] = field(default_factory=set)
    started: float = field(default_factory=time.monotonic)

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def overdue(self) -> bool:
        return time.monotonic() - self.started > PATIENCE_S

    def output(self) -> tuple[str, str]:
        return (self.folder / "stdout").read_text(), (self.folder / "stderr").read_text()

    def retries(self) -> int:
        """As the result says, or the last progress line of a driver that did not finish."""
        out, error = self.output()
        try:
            return int(json.loads(out)["retries"])
        except (ValueError, KeyError, TypeError):
            return max((int(number) for number in re.findall(r"retries (\d+)", error)), default=0)

    def wrong(self) -> list[str]:
        """What is wrong with how the driver ended."""
        code, (_, error) = self.process.returncode, self.output()
        last_words = " ".join(error.split())[-600:]
        lines = [f"exit code {code}: {last_words}"] if code not in {0} | self.struck else []
        return lines + ([f"a traceback on stderr: {last_words}"] if "Traceback" in error else [])


class World:
    """Everything that lasts from run to run. Use as a context manager."""

    def __init__(self, steps: int, per_class: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rarefy-faults-", dir="/tmp"))
        self.outputs, self.control = self.folder / "outputs", self.folder / "control"
        for folder in (self.outputs, *(self.control / name for name in ("tokens", "used", "loaded"))):
            folder.mkdir(parents=True)
        self.manifest = self.folder / "manifest.toml"
        self.manifest.write_text(MANIFEST.format(steps=steps, per_class=per_class))
        self.storage = StandIn()
        self.count = 0
        self.nodes: list[Any] = []

    def __enter__(self) -> World:
        self.storage.__enter__()
        self.storage.make_bucket(BUCKET)
        os.environ.update(self._environment())
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": False,
                "temp_dir": str(self.folder / "ray"),
                "_system_config": {"health_check_period_ms": 1000, "health_check_failure_threshold": 5},
            },
        )
        for _ in range(NODES):
            self.add_node()
        return self

    def __exit__(self, *_: object) -> None:
        self.cluster.shutdown()
        self.storage.__exit__(None, None, None)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _environment(self) -> dict[str, str]:
        paths = [REPO / "tests" / "faults" / "shim", REPO / "pipeline"]
        return self.storage.environment() | {
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "RAREFY_FAULTS": str(self.control),
            "RAREFY_FAULTS_ROOT": f"{self.outputs}/",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "RAY_TMPDIR": str(self.folder),  # leaves alone the address of a Ray that somebody else has started here
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
        }

    def add_node(self, bad: bool = False) -> Any:
        """Start a raylet with one CPU; on a bad one no actor can load its models."""
        os.environ["RAREFY_FAULTS_NODE"] = "bad" if bad else "good"
        node = self.cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
        if not bad:
            self.nodes.append(node)
        return node

    def remove_node(self, node: Any) -> None:
        """Kill a raylet. Its workers notice and end."""
        if node in self.nodes:
            self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)

    def new_output(self, where: str) -> Output:
        """A new output; where: local or s3."""
        self.count += 1
        if where == "local":
            root = str(self.outputs / f"out{self.count}")
            return Output(root, fsspec.filesystem("file"), root)
        direct = fsspec.filesystem("s3", client_kwargs={"endpoint_url": self.storage.direct_url}, key="testing",
                                   secret="testing", use_listings_cache=False, skip_instance_cache=True)  # fmt: skip
        return Output(f"s3://{BUCKET}/out{self.count}", direct, f"{BUCKET}/out{self.count}")

    def start(self, output: Output) -> Session:
        """Start ``rarefy generate`` on the cluster, in a process group of its own, with Python's own Ctrl-C."""
        self.count += 1
        folder = self.folder / f"session{self.count}"
        folder.mkdir()
        command = [sys.executable, "-m", "rarefy", "generate", str(self.manifest), "--out", output.root, "--json",
                   "--ray-address", self.cluster.address, "--actors", str(NODES + 1), "--cpus-per-actor", "1",
                   "--shard-timeout", "10"]  # fmt: skip
        with (folder / "stdout").open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
            process = subprocess.Popen(
                command,
                cwd=folder,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )
        return Session(process, folder)

    def loaded_actors(self) -> list[int]:
        """Process ids of actors that have loaded their models."""
        return [pid for pid in actors(os.getpid()) if (self.control / "loaded" / str(pid)).exists()]

    def drop_token(self, kind: str, number: int, content: str = "") -> None:
        """Let one process of a run have a fault (see shim/sitecustomize.py)."""
        private = self.control / f"{kind}.{number}"
        private.write_text(content)
        private.rename(self.control / "tokens" / private.name)

    def withdraw(self) -> list[str]:
        """Withdraw the tokens that no process has used; returns their kinds."""
        left = list((self.control / "tokens").iterdir())
        for token in left:
            token.unlink()
        return [token.name.rpartition(".")[0] for token in left]
