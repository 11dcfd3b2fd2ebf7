"""The driver on a real Ray: completion, dead and hung actors, retries, and a term from outside the package."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from rarefy.errors import CheckpointError, DeviceError, OutputError, ShardError, TemporaryError
from rarefy.generate import staff
from rarefy.generate.driver import GenerateOptions, generate
from rarefy.generate.events import Event
from rarefy.generate.progress import Status
from rarefy.manifest import Manifest, load_manifest
from rarefy.models.folder import find_model
from rarefy.plan import shard_name
from rarefy.shards.listing import committed_numbers
from rarefy.shards.metadata import read_records
from rarefy.shards.store import Store
from rarefy.stages import seal_run, verify_run

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module", autouse=True)
def cluster(open_ray: None, module_gate: Any) -> Iterator[None]:
    """One Ray for all these tests, because generate uses an existing connection. Its actors can import the examples."""
    folder = tempfile.mkdtemp(prefix="rarefy-test-", dir="/tmp")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in module_gate.environment.items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", str(EXAMPLES), prepend=os.pathsep)
        ray.init("local", num_cpus=2, num_gpus=0, include_dashboard=False, object_store_memory=10**8,
                 log_to_driver=False, logging_level=logging.ERROR, _temp_dir=folder)  # fmt: skip
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def gate(module_gate: Any) -> Iterator[Any]:
    """Of this module's Ray, open again after the test."""
    yield module_gate
    module_gate.open()


def silent(status: Status) -> None:
    """A progress sink that shows nothing."""


class Strike:
    """A progress sink that waits until the run is ``ready``, sends each signal to another actor, and opens the gate."""

    def __init__(self, runs: Any, gate: Any, ready: Callable[[Status], bool], *signals: signal.Signals) -> None:
        self.runs, self.gate, self.ready, self.signals = runs, gate, ready, signals
        self.struck: list[int] = []

    def __call__(self, status: Status) -> None:
        if not self.struck and self.ready(status):
            self.struck = self.runs.actors(os.getpid())[: len(self.signals)]
            for pid, number in zip(self.struck, self.signals, strict=True):
                os.kill(pid, number)
            self.gate.open()


def test_two_actors_make_the_same_bytes_as_none(runs: Any, tmp_path: Path) -> None:
    path, out = runs.manifest(), tmp_path / "out"
    statuses: list[Status] = []
    result = generate(load_manifest(path), GenerateOptions(str(out), actors=2), statuses.append)
    assert runs.tars(out) == runs.standard
    assert (result.shards, result.images, result.made_shards, result.made_images, result.retries) == (10, 20, 10, 20, 0)
    assert verify_run(Store(str(out))) == {}
    assert seal_run(Store(str(out))).counts == dict.fromkeys(range(10), 2)
    assert statuses[-1].done == statuses[-1].total == 20
    assert [status.done for status in statuses] == sorted(status.done for status in statuses)
    again = generate(load_manifest(path), GenerateOptions(str(out), actors=2), silent)
    assert (again.made_shards, again.made_images) == (0, 0)


@pytest.mark.slow(15)
def test_killed_and_hung_actors_cost_nothing_but_time(runs: Any, gate: Any, tmp_path: Path) -> None:
    path, out = runs.manifest(), tmp_path / "out"
    gate.permit(6)  # so that one actor cannot make all shards before the other one has loaded
    strike = Strike(runs, gate, lambda status: status.actors_alive == 2, signal.SIGKILL, signal.SIGSTOP)
    result = generate(load_manifest(path), GenerateOptions(str(out), actors=2, shard_timeout_s=4), strike)
    assert len(strike.struck) == 2 and runs.gone(strike.struck)
    assert result.retries >= 1  # a shard whose commit came just before the signal needs none
    assert runs.tars(out) == runs.standard
    assert verify_run(Store(str(out))) == {}


@pytest.mark.slow(15)
def test_missing_shards_are_named_and_the_rest_is_kept(runs: Any, gate: Any, tmp_path: Path) -> None:
    path, out = runs.manifest(), tmp_path / "out"
    gate.permit(3)
    # Six images of shards that the driver knows to be committed, and four of the two shards that wait at the gate.
    strike = Strike(runs, gate, lambda status: status.done > 9.9, signal.SIGKILL)
    options = GenerateOptions(str(out), actors=1, max_attempts=1)
    with pytest.raises(
        TemporaryError, match=r"of 10 shards are missing.*rare-00000.*worker process has died"
    ) as caught:
        generate(load_manifest(path), options, strike)
    made = {shard_name("rare", number) for number in committed_numbers(Store(str(out)), "rare")}
    assert len(made) == 9, "only the shard that ran when its actor was killed is missing, not the one that waited"
    assert all(name not in str(caught.value) for name in made)
    assert set(verify_run(Store(str(out)))) == {f"rare-{k:06d}" for k in range(10)} - made
    generate(load_manifest(path), options, silent)
    assert runs.tars(out) == runs.standard


def test_a_users_error_in_an_actor_ends_the_run_without_a_retry(runs: Any, tmp_path: Path) -> None:
    path, out = runs.manifest(), tmp_path / "out"
    wrong = find_model("fashion-mnist-28").file("classifier")
    path.write_text(path.read_text().replace("[sampler]", f'checkpoint = "{wrong}"\n[sampler]'))
    with pytest.raises(CheckpointError, match="does not fit this network"):
        generate(load_manifest(path), GenerateOptions(str(out), actors=1), silent)
    assert not out.exists()
    path = runs.manifest("[accept]\nentropy = { min = 5.0 }\nmax_candidates = 1")
    with pytest.raises(ShardError, match=r"draws passed \(0\.0%\)"):
        generate(load_manifest(path), GenerateOptions(str(out), actors=1), silent)


def test_weights_that_differ_from_the_first_sessions_are_refused(runs: Any, tmp_path: Path) -> None:
    own = tmp_path / "own.safetensors"
    own.write_bytes(find_model("fashion-mnist-28").file("unet").read_bytes())
    path, out = runs.manifest(), tmp_path / "out"
    path.write_text(path.read_text().replace("[sampler]", f'checkpoint = "{own}"\n[sampler]'))
    runs.undisturbed(path, out)
    (out / "state" / "rare-000003.json").unlink()
    data = bytearray(own.read_bytes())
    data[-1] ^= 1
    own.write_bytes(data)
    Store(str(out)).write_bytes("state/run.json", b'{"manifest_digest": "%s"}' % load_manifest(path).digest.encode())
    with pytest.raises(OutputError, match="weights"):
        generate(load_manifest(path), GenerateOptions(str(out), actors=1), silent)


def test_resources_that_the_cluster_lacks_are_waited_for(
    runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, options = load_manifest(runs.manifest()), GenerateOptions(str(tmp_path / "out"))
    for gpus in (1.5, 0.00001):
        with pytest.raises(DeviceError, match=r"gpus_per_actor: .* is not 0, a fraction below 1 in steps of 0.0001"):
            generate(manifest, replace(options, gpus_per_actor=gpus), silent)
    events: list[Event] = []
    monkeypatch.setattr(staff, "WAITING_S", 0.5)
    monkeypatch.setattr(staff, "NO_MACHINE_S", 2.0)
    for lacking in ({"gpus_per_actor": 0.5}, {"cpus_per_actor": 3}):
        with pytest.raises(
            TemporaryError, match=r"no actor could run for .* none of the cluster's 1 machines has so much"
        ):
            generate(manifest, replace(options, **lacking), silent, [events.append])
    assert [event.cause for event in events] == [
        "an actor that needs 1 CPU and 0.5 GPU has not started: none of the cluster's 1 machines has so much",
        "an actor that needs 3 CPUs has not started: none of the cluster's 1 machines has so much",
    ]
    assert not (tmp_path / "out").exists()


def example(tmp_path: Path, module: str) -> Manifest:
    """examples/boundary.toml, cut down to four images in three steps, with its term in another module."""
    text = (EXAMPLES / "boundary.toml").read_text()
    changes = {"logsnr20": "logsnr3", "per_class = 10": "total = 4", "batch = 50": "batch = 2", "boundary_term": module}
    for old, new in changes.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    (tmp_path / "boundary.toml").write_text(text)
    return load_manifest(tmp_path / "boundary.toml", allow_plugins=True)


def test_the_example_of_a_term_runs_on_actors_that_find_it_on_the_python_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    out = tmp_path / "out"
    generate(example(tmp_path, "boundary_term"), GenerateOptions(str(out), actors=1), silent)
    assert verify_run(Store(str(out))) == {}
    records = read_records(Store(str(out)), "boundary-000000")
    assert [record.guidance for record in records] == ["boundary_term:Boundary+predicted-real-image"] * 4


def test_actors_that_cannot_import_a_term_end_the_run_with_the_modules_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here only the driver can import it: actors inherit PYTHONPATH, but not the driver's changes to sys.path."""
    (tmp_path / "private_term.py").write_text((EXAMPLES / "boundary_term.py").read_text())
    monkeypatch.syspath_prepend(str(tmp_path))
    options = GenerateOptions(str(tmp_path / "out"), actors=1, max_attempts=1)
    with pytest.raises(DeviceError, match=r"actors: 1 were started, and none works.*No module named 'private_term'"):
        generate(example(tmp_path, "private_term"), options, silent)
