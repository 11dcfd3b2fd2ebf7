"""Tiny runs of the embedded model."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from faults.processes import descendants

from rarefy.generate.actor import ShardGenerator
from rarefy.generate.cluster import forget_token
from rarefy.manifest import load_manifest
from rarefy.plan import make_plan

REPO = Path(__file__).parents[2]


class Gate:
    """Lets as many shards of a run be committed as a test has permitted, so that no test depends on its speed.

    root: the folder of the run's output, or one above it; environment: variables for the run's processes, which import
    faults/shim/sitecustomize.py when they start. Open at first.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        self._tokens, self._closed, self._permits = folder / "tokens", folder / "gate", 0
        for name in ("tokens", "used", "loaded"):
            (folder / name).mkdir(parents=True)
        paths = [REPO / "tests" / "faults" / "shim", REPO / "pipeline"]
        self.environment = {
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "RAREFY_FAULTS": str(folder),
            "RAREFY_FAULTS_ROOT": f"{root}/",
        }

    def permit(self, shards: int) -> None:
        """Close the gate, but let so many more shards through."""
        self._closed.touch()
        for _ in range(shards):
            self._permits += 1
            (self._tokens / f"permit.{self._permits}").touch()

    def open(self) -> None:
        """Let all shards through, and withdraw what was permitted and not used."""
        self._closed.unlink(missing_ok=True)
        for token in self._tokens.iterdir():
            token.unlink(missing_ok=True)

    def wait(self, process: subprocess.Popen[str], out: Path, shards: int) -> None:
        """Wait until so many shards of a closed gate are committed; the next ones are then generated, or wait here."""
        while Runs.committed(out) < shards:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)


@pytest.fixture(scope="module")
def open_ray() -> Iterator[None]:
    """A Ray that a test starts itself has no token, whatever an earlier one of this process or the home folder left."""
    before = os.environ.get("RAY_AUTH_MODE")
    os.environ["RAY_AUTH_MODE"] = "disabled"
    forget_token()
    yield
    os.environ.pop("RAY_AUTH_MODE")
    if before is not None:
        os.environ["RAY_AUTH_MODE"] = before
    forget_token()


class Runs:
    """Tiny manifests in one folder, and helpers to inspect runs; a fixture, because tests cannot import this file."""

    def __init__(self, folder: Path, standard: dict[str, bytes]) -> None:
        self.folder, self.standard = folder, standard

    def manifest(self, extra: str = "", classes: str = "per_class = 2", steps: int = 16) -> Path:
        """Write a manifest of 20 images in 10 shards; ``extra`` is more TOML."""
        path = self.folder / "manifest.toml"
        path.write_text(f"""
name = "tiny"
[model]
preset = "fashion-mnist-28"
[sampler]
steps = {steps}
batch = 2
[classes]
{classes}
[output]
shard_size = 2
{extra}
""")
        return path

    @staticmethod
    def undisturbed(manifest_path: Path, out: Path) -> dict[str, bytes]:
        """Tars by file name, generated in this process, one after the other, without Ray."""
        generator = ShardGenerator(load_manifest(manifest_path), str(out), "cpu", 1)
        generator.load()
        for shard in range(make_plan(generator.manifest).num_shards):
            generator.generate(shard, f"undisturbed-{shard}")
        return Runs.tars(out)

    @staticmethod
    def tars(out: Path) -> dict[str, bytes]:
        """Committed tars by file name."""
        return {path.name: path.read_bytes() for path in sorted((out / "shards").glob("*.tar"))}

    @staticmethod
    def committed(out: Path) -> int:
        """Number of committed shards."""
        return len(list((out / "state").glob("rare-*.json")))

    @staticmethod
    def actors(pid: int) -> list[int]:
        """Living actor processes under ``pid``."""
        return [child for child, title in descendants(pid).items() if "ray::ShardGenerator" in title]

    @staticmethod
    def servers(pid: int) -> list[int]:
        """Ray's living servers under ``pid``, except its two agents, which end a minute after the servers."""
        names = ("/raylet", "/gcs_server", "monitor.py", "dashboard.py")
        return [child for child, title in descendants(pid).items() if any(name in title for name in names)]

    @staticmethod
    def alive(pid: int) -> bool:
        """Whether the process exists and is not a zombie."""
        try:
            return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
        except OSError:
            return False

    @staticmethod
    def gone(pids: list[int]) -> bool:
        """Whether the processes end within two minutes."""
        end = time.monotonic() + 120
        while any(Runs.alive(pid) for pid in pids):
            if time.monotonic() > end:
                return False
            time.sleep(0.1)
        return True


@pytest.fixture(scope="session")
def standard(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The tars of an undisturbed run of ``runs.manifest()``."""
    folder, threads = tmp_path_factory.mktemp("standard"), torch.get_num_threads()
    tars = Runs.undisturbed(Runs(folder, {}).manifest(), folder / "out")
    torch.set_num_threads(threads)
    return tars


@pytest.fixture
def runs(tmp_path: Path, standard: dict[str, bytes]) -> Iterator[Runs]:
    """Tiny runs, with the tars that ``manifest()`` must give. Restores torch's thread count, which an actor changes."""
    threads = torch.get_num_threads()
    yield Runs(tmp_path, standard)
    torch.set_num_threads(threads)


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate", tmp_path)


@pytest.fixture(scope="module")
def module_gate(tmp_path_factory: pytest.TempPathFactory) -> Gate:
    """For all runs of a module, whose outputs are in folders of pytest's."""
    return Gate(tmp_path_factory.mktemp("gate"), tmp_path_factory.getbasetemp())
