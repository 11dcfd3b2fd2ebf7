"""Jobs that run by turns: nobody runs outside its own, and the clock of both forms of the pipeline stands between."""

from __future__ import annotations

import itertools
from concurrent.futures import Future
from typing import Any

import pytest
from stamps import fail, stamp

from benchmarks import alternate, overhead
from benchmarks.overhead_work import BareRun, Moment, PipelineRun
from rarefy.bench.processes import Process

SLACK_S = 0.05  # a signal's way


def test_one_runs_while_the_other_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alternate, "TURN_S", 0.2)
    jobs = alternate.alternately((stamp, "first"), (stamp, "second"))
    for job, name in zip(jobs, ("first", "second"), strict=True):
        found, stamps = job.future.result()
        assert found == name
        assert len(job.awake) > 3
        turns = [(first - SLACK_S, last + SLACK_S) for first, last in job.awake]
        assert all(any(first <= when <= last for first, last in turns) for when in stamps)
        assert job.seconds(stamps[0], stamps[-1]) < stamps[-1] - stamps[0] - 0.2  # the other's turns are left out
    both = sorted([*jobs[0].awake, *jobs[1].awake])
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(both))


def test_a_job_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alternate, "TURN_S", 0.2)
    with pytest.raises(ValueError, match="on purpose"):
        alternate.alternately((stamp, "whole"), (fail, "on purpose"))


def test_seconds_of_a_pair() -> None:
    def job(result: Any, *awake: tuple[float, float]) -> alternate.Job:
        future = Future[Any]()
        future.set_result(result)
        return alternate.Job(0, future, list(awake))

    walls = (1.0, 4.0, 22.0, 23.0, 24.0)  # begin, models, last commit, Ray's end, sealed
    titles = {1: "python", 2: "ray::IDLE", 3: "raylet"}  # the second becomes an actor behind the first's models

    def moment(wall: float) -> Moment:
        seconds = {1: 1.0, 2: 2 * wall, 3: wall / 2}
        named = titles if wall <= 4 else titles | {2: "ray::ShardGenerator"}
        return Moment(wall, {pid: Process(pid, 0, named[pid], seconds[pid], 0.0) for pid in titles})

    moments = [moment(wall) for wall in walls]
    bare = job(BareRun(start=11.0, end=17.0, cpu=5.0, images_sha256="same"), (10, 12), (14, 16))
    pipeline = job(PipelineRun(*moments, images_sha256="same"), (0, 10), (20, 30))
    pair = overhead.compare(bare, pipeline)
    assert pair.seconds["wall"] == {"startup": 3.0, "generating": 8.0, "ray_end": 1.0, "seal": 1.0, "bare": 3.0}
    shares = {"generating_actors": 36.0, "generating_driver": 0.0, "generating_ray": 9.0}
    assert pair.seconds["cpu"] == {"startup": 7.5, "generating": 45.0, "seal": 2.5, "bare": 5.0, **shares}
    found = overhead.summarize([pair])
    assert found["same_images"] is True
    assert found["wall"]["ratio"]["median"] == pytest.approx(3 / 9)
    assert found["wall"]["ratio_with_startup"]["median"] == pytest.approx(3 / 13)
    assert found["cpu"]["ratio"]["median"] == pytest.approx(5 / 47.5)
    assert found["cpu"]["ratio_with_startup"]["median"] == pytest.approx(5 / 55)
