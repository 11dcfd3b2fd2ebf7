"""A trajectory, made again from key, candidate and seed: it ends at the stored image, and says so."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from torch import Tensor
from traced_run import STEPS

from rarefy.consume.rows import read_rows
from rarefy.diffusion.sampler import Sample, sample, to_uint8
from rarefy.errors import DataError, DeviceError, RarefyError
from rarefy.shards.reader import decode_image
from rarefy.shards.store import Store
from rarefy.shards.writer import encode_png
from rarefy.view import jobs, trajectory
from rarefy.view.app import App, ViewOptions, comparison
from rarefy.view.jobs import Trajectories, sampler_of
from rarefy.view.origin import Origin, Trajectory
from rarefy.view.run import Run
from rarefy.view.trajectory import Sampler


@pytest.fixture(scope="module")
def sampler(traced: Store) -> Sampler:
    return Sampler(traced, "cpu", None, allow_plugins=False)


@pytest.fixture
def app(traced: Store) -> Iterator[App]:
    app = App(Run(traced), ViewOptions())
    yield app
    app.close()


def origins(store: Store) -> list[Origin]:
    rows = read_rows(store, accepted=False, partial=True)
    return [Origin(row["key"], row["class_id"], row["seed"], row["candidate"]) for _, row in rows.iterrows()]


def quiet(done: int, total: int) -> None:
    assert 0 <= done < total == STEPS


def test_it_ends_at_the_stored_image_and_its_scores(traced: Store, sampler: Sampler) -> None:
    rows, run = read_rows(traced, accepted=False, partial=True), Run(traced)
    assert max(rows["candidate"]) > 0  # later candidates have other seeds
    for (_, row), origin in zip(rows.iterrows(), origins(traced), strict=True):
        found = sampler.trace(origin, quiet)
        stored = decode_image(run.png(origin.key)).astype(int)
        assert np.abs(found.image - stored).max() <= 1  # another batch may round differently
        assert comparison(found, run.png(origin.key)).startswith("Made again: ")
        assert found.steps[-1].t == 0
        assert found.steps[-1].confidence == pytest.approx(row["confidence"], abs=0.02)
        assert found.steps[-1].entropy == pytest.approx(row["entropy"], abs=0.05)
        times = [step.t for step in found.steps]
        assert times == sorted(times, reverse=True) and len(times) == STEPS


def test_its_pictures_are_the_states_of_the_sampler(
    traced: Store, sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = list[tuple[Tensor, Tensor]]()

    def watched(*arguments: Any) -> Iterator[Sample]:
        for state in sample(*arguments):
            states.append((state.x.clone(), state.pred_xstart.clone()))
            yield state

    monkeypatch.setattr(trajectory, "sample", watched)
    monkeypatch.setattr(trajectory, "MOST_FRAMES", 3)
    found = sampler.trace(origins(traced)[0], quiet)
    assert [frame.number for frame in found.frames] == [0, 2, 4]
    for frame in found.frames:
        x, predicted = (to_uint8(each)[0].numpy() for each in states[frame.number])
        np.testing.assert_array_equal(decode_image(frame.x), x)
        np.testing.assert_array_equal(decode_image(frame.predicted), predicted)
    np.testing.assert_array_equal(decode_image(found.frames[-1].x), found.image)


def test_a_row_of_another_manifest_is_refused(traced: Store, sampler: Sampler) -> None:
    origin = origins(traced)[0]
    for wrong in (replace(origin, seed=origin.seed + 1), replace(origin, candidate=9), replace(origin, class_id=4)):
        with pytest.raises(RarefyError, match=f"image {origin.key}: 'class . with seed .* what the manifest plans"):
            sampler.trace(wrong, quiet)


def test_what_cannot_be_sampled_here_is_said(traced: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match="device"):
        sampler_of(traced, "tpu", None, False)
    monkeypatch.setitem(__import__("sys").modules, "rarefy.view.trajectory", None)
    error = ModuleNotFoundError("No module named 'torch'", name="torch")
    monkeypatch.setattr("builtins.__import__", refuse_import(error))
    with pytest.raises(RarefyError, match=r"a trajectory needs torch: pip install 'rarefy\[run\]'"):
        sampler_of(traced, "cpu", None, False)


def refuse_import(error: ModuleNotFoundError) -> Any:
    real = __import__

    def refuse(name: str, *rest: Any) -> Any:
        if name == "rarefy.view.trajectory":
            raise error
        return real(name, *rest)

    return refuse


def test_differences_are_counted() -> None:
    image = np.zeros((1, 10, 10), np.uint8)
    same = Trajectory((), (), image)
    assert comparison(same, encode_png(image)) == "Made again: byte for byte the stored image."
    other = image.copy()
    other[0, 0, :3] = 1, 2, 0
    text = comparison(same, encode_png(other))
    assert text.startswith("Made again: it differs from the stored image in 2.0% of the values, by at most 2 of 255 ")


# ---- as the page asks for it


def answer(app: App, key: str) -> Any:
    return json.loads(app.get("/api/trajectory", {"key": key}).body)


def test_the_page_starts_it_follows_it_and_gets_its_pictures(app: App, sampler: Sampler) -> None:
    app._traces = Trajectories(lambda: sampler)
    key = origins(app.run.store)[0].key
    with pytest.raises(DataError, match="has not been asked for"):
        answer(app, key)
    told = json.loads(app.post("/api/trajectory", {"key": key}).body)
    while "steps" not in told:
        assert told["error"] == ""
        time.sleep(0.01)
        told = answer(app, key)
    assert (told["done"], told["total"], len(told["steps"])) == (STEPS - 1, STEPS, STEPS)
    assert told["comparison"].startswith("Made again: ")
    last = told["frames"][-1]
    pixels = decode_image(app.get(f"/trajectory/{key}/{last}/x.png", {}).body).astype(int)
    assert np.abs(pixels - decode_image(app.run.png(key))).max() <= 1
    for wrong in (f"{key}/99/x.png", f"{key}/{last}/y.png", "00000000002/0/x.png"):
        with pytest.raises(DataError, match="there is no picture"):
            app.get(f"/trajectory/{wrong}", {})


class Waits:
    """Stands in for a sampler that has begun and goes on until it is stopped."""

    def __init__(self) -> None:
        self.begun = threading.Event()

    def trace(self, origin: Origin, progress: trajectory.Progress) -> Trajectory:
        if origin.key == "bad":
            raise RarefyError("it cannot\nbe made")
        for step in range(1000):
            progress(step, 1000)
            self.begun.set()
            time.sleep(0.01)
        raise AssertionError("not stopped")


def test_the_end_of_the_server_ends_the_work() -> None:
    waits: Any = Waits()
    traces = Trajectories(lambda: waits)
    job = traces.job(Origin("a", 0, 0, 0))
    assert traces.job(Origin("a", 0, 0, 0)) is job  # asked for again while it runs
    assert waits.begun.wait(10)
    traces.close()
    assert job.error or job.result.done()


def test_a_failure_is_one_line_and_may_be_tried_again() -> None:
    waits: Any = Waits()
    traces = Trajectories(lambda: waits)
    job = traces.job(Origin("bad", 0, 0, 0))
    assert job.result.exception(10) is not None and job.error == "it cannot be made"
    assert traces.job(Origin("bad", 0, 0, 0)) is not job
    traces.close()


def test_only_the_last_ones_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "MOST_KEPT", 2)
    waits: Any = Waits()
    traces = Trajectories(lambda: waits)
    for key in ("a", "b", "a", "c"):
        traces.job(Origin(key, 0, 0, 0))
    assert [key for key in "abc" if traces.known(key)] == ["a", "c"]
    traces.close()
