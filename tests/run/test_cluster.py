"""Machines of a real Ray cluster come, go and are sick; and its head is lost."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from null_actor import NullActor, sick_nodes
from ray.cluster_utils import Cluster

from rarefy.generate import driver, staff
from rarefy.generate.driver import GenerateOptions, generate
from rarefy.generate.events import Blame, Event, What
from rarefy.generate.progress import Status
from rarefy.manifest import load_manifest
from rarefy.shards.listing import committed_numbers
from rarefy.shards.store import Store

REPO = Path(__file__).parents[2]
NODE: dict[str, Any] = {"object_store_memory": 10**8, "include_dashboard": False}


@pytest.fixture
def cluster(open_ray: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without CPUs; this process is connected to it."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPO / "tests"), str(REPO / "pipeline")]))
    monkeypatch.setenv("RAY_health_check_period_ms", "500")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "3")
    with tempfile.TemporaryDirectory(prefix="rarefy-test-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "temp_dir": folder, **NODE})
        ray.init(cluster.address, log_to_driver=False, logging_level=logging.CRITICAL)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


class Weather:
    """A progress sink that changes the cluster: two machines when actors wait, then one leaves and a larger one comes.

    Their GPUs are numbers that only Ray counts.
    """

    def __init__(self, cluster: Cluster, out: Path, events: list[Event]) -> None:
        self.cluster, self.sick_nodes, self.events = cluster, sick_nodes(str(out)), events
        self.sick_nodes.mkdir()
        self.nodes: list[Any] = []

    def __call__(self, status: Status) -> None:
        if not self.nodes and any(event.what is What.WAITING for event in self.events):
            self.nodes += [self.add(1), self.add(1)]
            (self.sick_nodes / self.nodes[1].node_id).touch()
        elif len(self.nodes) == 2 and status.done >= 10:
            self.cluster.remove_node(self.nodes[0], allow_graceful=False)
            self.nodes.append(self.add(2))

    def add(self, gpus: int) -> Any:
        return self.cluster.add_node(num_cpus=4, num_gpus=gpus, **NODE)


@pytest.mark.slow(20)
def test_machines_that_come_go_or_are_sick_cost_no_shard_an_attempt(
    runs: Any, tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "ShardGenerator", NullActor)
    monkeypatch.setattr(staff, "WAITING_S", 1.0)
    out, events = tmp_path / "out", list[Event]()
    weather = Weather(cluster, out, events)
    manifest = load_manifest(runs.manifest(classes="total = 100"))
    result = generate(manifest, GenerateOptions(str(out), gpus_per_actor=0.6), weather, [events.append])
    goes, sick, comes = (node.node_id for node in weather.nodes)
    assert (result.made_shards, result.made_images) == (50, 100)
    assert committed_numbers(Store(str(out)), "rare") == set(range(50))
    waits = next(event.cause for event in events if event.what is What.WAITING)
    assert waits.endswith("1 CPU and 0.6 GPU has not started: none of the cluster's 1 machines has so much")
    excluded = {event.node for event in events if event.what is What.NODE_EXCLUDED and event.blame is Blame.NODE}
    assert excluded == {sick}
    ready = [event.node for event in events if event.what is What.ACTOR_READY]
    assert ready == [goes, comes, comes], "one actor with 0.6 of a GPU on each GPU"
    assert {event.blame for event in events if event.what is What.RETRY} <= {Blame.SYSTEM}


IMPATIENT = """
import sys
from rarefy.cli import main
from rarefy.generate import head
head.HEAD_S = 12.0
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow(30)
def test_loss_of_the_head_keeps_what_is_made_and_says_run_again(runs: Any, gate: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    gate.permit(1)
    words = ["generate", str(runs.manifest()), "--out", str(out), "--actors", "1"]
    process = subprocess.Popen(
        [sys.executable, "-c", IMPATIENT, *words],
        env=os.environ | gate.environment | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    gate.wait(process, out, 1)
    (head,) = (pid for pid in runs.servers(process.pid) if "gcs_server" in Path(f"/proc/{pid}/cmdline").read_text())
    os.kill(head, signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == 75, errors
    assert "the head of the Ray cluster has not answered" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert runs.committed(out) == 1
