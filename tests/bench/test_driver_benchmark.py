"""The driver's benchmark in its smallest form, without Ray, and what its synthetic shards are worth."""

from __future__ import annotations

import json
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from benchmarks import driver, synthetic
from benchmarks.null_actor import MarkerGenerator
from rarefy.generate.driver import GenerateOptions
from rarefy.generate.progress import ProgressSink, Status
from rarefy.manifest import Manifest
from rarefy.plan import make_plan
from rarefy.shards.store import Store
from rarefy.stages import seal_run, verify_run


class Here:
    """A pool of one new process that is this one."""

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, work: Any, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(work(*arguments))
        return future


def generate_here(actors: list[type]) -> Any:
    """Stands in for generate: the last actor given to ``use`` makes what is missing."""

    def generate(manifest: Manifest, options: GenerateOptions, progress: ProgressSink) -> None:
        actor, store = actors[-1](manifest, options.out), Store(options.out)
        total = make_plan(manifest).num_shards
        there = [int(name[5:11]) for name in store.list("state") if name.startswith("rare-")]
        if len(there) == total:
            return
        actor.load()
        for done, shard in enumerate(sorted(set(range(total)) - set(there)), len(there) + 1):
            actor.generate(shard, "attempt")
            progress(Status(done, total, len(there), 0.0, None, 1, 1, 0, None, None))

    return generate


def test_all_figures_are_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    used: list[type] = []
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr(driver, "use", used.append)
    monkeypatch.setattr(driver, "fresh_process", Here)
    monkeypatch.setattr(driver, "generate", generate_here(used))
    monkeypatch.setattr(driver, "requests_per_shard", lambda: {"PUT": 3.0})
    driver.main(["--small", "3", "--large", "6", "--more", "4", "--sealed", "3", "--json"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(used) == {MarkerGenerator}
    assert result["small"]["shards_per_second"] > 0 and result["large"]["shards_per_second"] > 0
    assert result["growth"] == pytest.approx(
        result["small"]["shards_per_second"] / result["large"]["shards_per_second"]
    )
    assert set(result["seconds"]) == {"seal", "verify"}


def test_synthetic_shards_are_those_of_the_plan(tmp_path: Path) -> None:
    manifest = synthetic.synthetic_manifest(12, rows=3)
    synthetic.write_shards(tmp_path, manifest, range(12), processes=1)
    assert verify_run(Store(str(tmp_path))) == {}
    sealed = seal_run(Store(str(tmp_path)))
    assert (sealed.shards, sealed.samples, sealed.counts) == (12, 36, manifest.counts)
