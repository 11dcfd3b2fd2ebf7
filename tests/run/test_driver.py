"""The driver on a real Ray: completion, dead and hung actors, what is retried and what is not."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from rarefy.errors import CheckpointError, DeviceError, OutputError, ShardError
from rarefy.generate.driver import GenerateOptions, generate
from rarefy.generate.progress import Status, silent
from rarefy.manifest import load_manifest
from rarefy.models.folder import find_model
from rarefy.shards.store import Store
from rarefy.stages import seal_run, verify_run


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One Ray for all of these tests; generate uses the one that its process has."""
    folder = tempfile.mkdtemp(prefix="rarefy-test-", dir="/tmp")
    ray.init("local", num_cpus=2, num_gpus=0, include_dashboard=False, object_store_memory=10**8,
             log_to_driver=False, logging_level=logging.ERROR, _temp_dir=folder)  # fmt: skip
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


class Strike:
    """A progress sink that sends a signal to one actor, once, when all have loaded and half of the work is left."""

    def __init__(self, number: int, runs: Any) -> None:
        self.number, self.runs = number, runs
        self.struck: list[int] = []

    def __call__(self, status: Status) -> None:
        all_ready = status.actors_alive == status.actors_wanted
        if not self.struck and all_ready and status.done < status.total / 2:
            self.struck = self.runs.actors(os.getpid())[:1]
            for pid in self.struck:
                os.kill(pid, self.number)


def test_two_actors_make_the_same_bytes_as_none(runs: Any, tmp_path: Path) -> None:
    path, out = runs.manifest(), tmp_path / "out"
    seen: list[Status] = []
    result = generate(load_manifest(path), GenerateOptions(str(out), actors=2), seen.append)
    assert runs.tars(out) == runs.standard
    assert (result.shards, result.images, result.made_shards, result.made_images, result.retries) == (10, 20, 10, 20, 0)
    assert verify_run(Store(str(out))) == {}
    assert seal_run(Store(str(out))).counts == dict.fromkeys(range(10), 2)
    assert seen[-1].done == seen[-1].total == 20
    assert [status.done for status in seen] == sorted(status.done for status in seen)
    again = generate(load_manifest(path), GenerateOptions(str(out), actors=2), silent)
    assert (again.made_shards, again.made_images) == (0, 0)


@pytest.mark.slow
def test_a_killed_actor_costs_nothing_but_time(runs: Any, tmp_path: Path) -> None:
    path, out = runs.manifest(), tmp_path / "out"
    strike = Strike(signal.SIGKILL, runs)
    result = generate(load_manifest(path), GenerateOptions(str(out), actors=2), strike)
    assert strike.struck
    assert not runs.alive(strike.struck[0])
    assert result.retries > 0
    assert runs.tars(out) == runs.standard
    assert verify_run(Store(str(out))) == {}


@pytest.mark.slow
def test_a_hung_actor_is_replaced(runs: Any, tmp_path: Path) -> None:
    path, out = runs.manifest(), tmp_path / "out"
    strike = Strike(signal.SIGSTOP, runs)
    options = GenerateOptions(str(out), actors=1, shard_timeout_s=4)
    result = generate(load_manifest(path), options, strike)
    assert strike.struck
    assert result.retries > 0
    assert runs.tars(out) == runs.standard
    assert not runs.alive(strike.struck[0])


@pytest.mark.slow
def test_what_cannot_be_made_is_named_and_the_rest_is_kept(runs: Any, tmp_path: Path) -> None:
    path, out = runs.manifest(), tmp_path / "out"
    options = GenerateOptions(str(out), actors=1, max_attempts=1)
    with pytest.raises(ShardError, match=r"of 10 shards are missing.*rare-00000.*last cause: rare-00000") as caught:
        generate(load_manifest(path), options, Strike(signal.SIGKILL, runs))
    made = set(runs.tars(out))
    assert made
    assert all(name.removesuffix(".tar") not in str(caught.value) for name in made)
    assert set(verify_run(Store(str(out)))) == {f"rare-{k:06d}" for k in range(10)} - {n[:-4] for n in made}
    generate(load_manifest(path), options, silent)
    assert runs.tars(out) == runs.standard


def test_a_users_error_in_an_actor_is_that_error_and_no_retry(runs: Any, tmp_path: Path) -> None:
    path, out = runs.manifest(), tmp_path / "out"
    wrong = find_model("fashion-mnist-28").file("classifier")
    path.write_text(path.read_text().replace("[sampler]", f'checkpoint = "{wrong}"\n[sampler]'))
    with pytest.raises(CheckpointError, match="does not fit this network"):
        generate(load_manifest(path), GenerateOptions(str(out), actors=1), silent)
    assert not out.exists()
    path = runs.manifest("[accept]\nentropy = { min = 5.0 }\nmax_candidates = 1")
    with pytest.raises(ShardError, match=r"draws passed \(0\.0%\)"):
        generate(load_manifest(path), GenerateOptions(str(out), actors=1), silent)


def test_other_weights_than_the_first_sessions_are_refused(runs: Any, tmp_path: Path) -> None:
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


def test_resources_that_the_cluster_does_not_have(runs: Any, tmp_path: Path) -> None:
    manifest, options = load_manifest(runs.manifest()), GenerateOptions(str(tmp_path / "out"))
    with pytest.raises(DeviceError, match=r"gpus_per_actor: 0\.5 is not at most 0"):
        generate(manifest, replace(options, gpus_per_actor=0.5), silent)
    with pytest.raises(DeviceError, match="cpus_per_actor: 3 is not at most 2"):
        generate(manifest, replace(options, cpus_per_actor=3), silent)
    assert not (tmp_path / "out").exists()
