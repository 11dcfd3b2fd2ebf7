"""What a run tells of itself: lines, files in the output, metrics. Nothing of it may end a run."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from rarefy.errors import OutputError, ShardError
from rarefy.generate import watch as watching
from rarefy.generate.actor_logs import actor_output, end_of
from rarefy.generate.driver_file import DriverFile, parse_driver_file, read_driver_files
from rarefy.generate.event_lines import LINES_PER_MINUTE, EventLines, RunNames
from rarefy.generate.events import Blame, Event, What
from rarefy.generate.metrics import COUNTERS, GAUGES, RunMetrics
from rarefy.generate.progress import ProgressLine, Status
from rarefy.generate.watch import FAILURES, Watch, new_driver
from rarefy.shards.claim import claim_output
from rarefy.shards.store import Store

REPO = Path(__file__).parents[2]
DIGEST = "d" * 64
NAMES = RunNames("tiny", "rare", "20261127T120000-0123abcd", 3)
STATUS = Status(12.4, 600, 0, 3.217, 182.6, 2, 3, 1, 0.8149, 0.3871)
ACTOR, NODE = "b0cfa37cf4e1701f", "8ab4ead6b2ac63e2"  # Ray's ids, in short
RETRY = Event(
    What.RETRY,
    3,
    "a1",
    1,
    "b0cfa37cf4e1701f",
    "8ab4ead6b2ac63e2",
    blame=Blame.ACTOR,
    cause="RuntimeError: CUDA error: lost",
)
GIVEN_UP = replace(
    RETRY, what=What.GIVEN_UP, number=3, blame=Blame.SHARD, cause="class 7 (sneaker), seed 99, step 4: not finite"
)


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (RETRY, "rare-000003 is tried again (attempt 2 of 3): actor b0cfa37c was lost"),
        (GIVEN_UP, "rare-000003 is given up after 3 of 3 attempts: class 7 (sneaker), seed 99, step 4: not finite"),
        (replace(RETRY, what=What.ACTOR_LOST), "actor b0cfa37c on 8ab4ead6 is lost: RuntimeError: CUDA error: lost"),
        (
            replace(RETRY, what=What.ACTOR_LOST, host="gpu-7"),
            "actor b0cfa37c on gpu-7 is lost: RuntimeError: CUDA error: lost",
        ),
        (
            Event(What.NODE_EXCLUDED, node="8ab4ead6b2ac63e2", host="gpu-7", cause="for 2 s, since an actor failed"),
            "machine gpu-7 gets no actors for 2 s, since an actor failed",
        ),
        (Event(What.WAITING, cause="a machine with 1 GPU"), "waiting: a machine with 1 GPU"),
        (Event(What.ACTOR_READY, actor="b0"), None),
    ],
)
def test_events_in_one_line(event: Event, line: str | None) -> None:
    shown: list[str] = []
    EventLines(NAMES, shown.append, as_json=False)(event)
    assert shown == ([] if line is None else [f"generate: {line}"])


def test_many_events_are_counted_instead_of_shown() -> None:
    shown: list[str] = []
    now = 0.0
    lines = EventLines(NAMES, shown.append, as_json=False, clock=lambda: now)
    for _ in range(LINES_PER_MINUTE + 5):
        lines(RETRY)
    now = 61.0
    lines(GIVEN_UP)
    lines.close()
    assert len(shown) == LINES_PER_MINUTE + 2
    assert shown[-2] == "generate: 5 more events; logs/ in the output has the last of them"
    assert "given up" in shown[-1]


def test_structured_lines_name_run_shard_attempt_and_actor() -> None:
    stream = io.StringIO()
    line = ProgressLine(stream, every_s=0.0, as_json=True)
    EventLines(NAMES, line.note, as_json=True)(RETRY)
    line(STATUS)
    event, progress = map(json.loads, stream.getvalue().splitlines())
    wanted = {"event": "retry", "run": "tiny", "shard": "rare-000003", "attempt": "a1", "charged": 1, "blame": "actor"}
    assert event.items() >= wanted.items()
    assert event["actor"] == RETRY.actor
    assert event["node"] == RETRY.node
    assert (progress["event"], progress["done"], progress["total"]) == ("progress", 12.4, 600)


Start = Callable[..., Watch]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"))


@pytest.fixture
def start(store: Store, monkeypatch: pytest.MonkeyPatch) -> Start:
    monkeypatch.setattr(watching, "CLAIM_S", 0.05)
    monkeypatch.setattr(watching, "SPACING_S", 0.01)

    def make(stream: io.StringIO | None = None, names: RunNames = NAMES) -> Watch:
        return Watch(store, DIGEST, names, ProgressLine(stream or io.StringIO()), metrics=False)

    return make


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_nothing_is_written_before_the_output_belongs_to_the_run(start: Start, store: Store) -> None:
    with start() as watch:
        watch.progress(STATUS)
        for listener in watch.listeners:
            listener(replace(RETRY, what=What.ACTOR_LOST, details="Traceback: first"))
        time.sleep(0.2)
        assert not store.list()
        claim_output(store, "", DIGEST)
        until(lambda: read_driver_files(store))
        assert store.read_bytes(f"logs/{RETRY.actor}.log").decode().splitlines() == [RETRY.cause, "Traceback: first"]
    (file,) = read_driver_files(store)
    assert (file.state, file.error, file.driver) == ("finished", "", NAMES.driver)
    assert file.status is not None
    assert file.status["done"] == 12.4


def test_another_runs_output_is_left_alone(start: Start, store: Store) -> None:
    claim_output(store, "", "e" * 64)
    before = store.list(), store.list("state")
    with pytest.raises(OutputError), start():
        raise OutputError("out: another run")
    assert (store.list(), store.list("state")) == before


@pytest.mark.parametrize(
    ("error", "state", "text"),
    [
        (ShardError("2 shards\nare missing"), "failed", "2 shards are missing"),
        (KeyError("a bug"), "failed", "KeyError: 'a bug'"),
        (KeyboardInterrupt(15), "interrupted", ""),
    ],
)
def test_the_end_of_a_run_is_told(start: Start, store: Store, error: BaseException, state: str, text: str) -> None:
    claim_output(store, "", DIGEST)
    with pytest.raises(type(error)), start() as watch:
        watch.listeners[1](replace(RETRY, what=What.ACTOR_READY))
        watch.listeners[1](RETRY)
        watch.listeners[1](GIVEN_UP)
        until(lambda: store.exists(FAILURES))
        assert read_driver_files(store)[0].actors == {RETRY.actor: RETRY.node}
        raise error
    (file,) = read_driver_files(store)
    assert (file.state, file.error, file.actors) == (state, text, {})
    assert file.retries == {"actor": 1}
    assert file.causes == ("rare-000003: RuntimeError: CUDA error: lost",)
    (row,) = json.loads(store.read_bytes(FAILURES))
    assert (row["shard"], row["class_id"], row["seed"], row["blame"]) == ("rare-000003", 7, 99, "shard")
    lines = store.read_bytes(f"logs/{NAMES.driver}.jsonl").decode().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["actor ready", "retry", "given up"]


def test_a_shard_that_another_session_made_is_no_longer_a_failure(start: Start, store: Store) -> None:
    claim_output(store, "", DIGEST)
    with start() as watch:
        watch.listeners[1](GIVEN_UP)
    assert len(json.loads(store.read_bytes(FAILURES))) == 1
    store.write_bytes("state/rare-000003.json", b"{}")
    with start(names=replace(NAMES, driver=new_driver())):
        pass
    assert json.loads(store.read_bytes(FAILURES)) == []


def test_a_failing_storage_never_ends_a_run(start: Start, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OutputError("out: 's3://bucket' is not writable (503)")

    claim_output(store, "", DIGEST)
    monkeypatch.setattr(store, "write_bytes", fail)
    stream = io.StringIO()
    with start(stream) as watch:
        for _ in range(3):
            watch.listeners[1](GIVEN_UP)
            time.sleep(0.05)
    told = stream.getvalue().splitlines()
    line = "run: it goes on, but its files for rarefy status fail: out: 's3://bucket' is not writable (503)"
    assert told == [line]


def test_a_storage_that_hangs_does_not_hold_up_the_end(
    start: Start, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, ended = threading.Event(), list[bool]()
    claim_output(store, "", DIGEST)
    monkeypatch.setattr(store, "write_bytes", lambda *_: ended.append(release.wait(60)))
    monkeypatch.setattr(watching, "END_S", 0.2)
    with start() as watch:
        watch.listeners[1](GIVEN_UP)
    assert not ended, "the end waited for the storage"
    release.set()


def test_driver_files_round_trip_and_damage_gives_none() -> None:
    file = DriverFile("d", "host", 1, 10.0, 20.0, status={"done": 1.5}, causes=("c",), retries={"actor": 2})
    data = file.to_json()
    assert parse_driver_file(data) == file
    damaged: list[bytes] = [b"", b"[]", b"{}", b"null", data[:-20], data.replace(b'"version": 1', b'"version": 2')]
    damaged += [data.replace(b"20.0", value) for value in (b'"x"', b"null", b"NaN", b"1e999", b"[]")]
    assert [parse_driver_file(item) for item in damaged] == [None] * len(damaged)


def test_a_driver_that_stays_silent_is_not_live() -> None:
    file = DriverFile("d", "host", 1, 10.0, 1000.0)
    assert file.live(1100.0)
    assert file.live(900.0)  # another machine's clock
    assert not file.live(1130.0)
    assert not replace(file, state="finished").live(1000.0)


def test_only_the_end_of_a_log_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"\xff" + b"x" * 200_000 + b"end")
    assert end_of(path).endswith("end")
    assert len(end_of(path)) == 64 * 1024
    path.write_bytes(b"short \xff")
    assert end_of(path) == "short \ufffd"


def test_the_dashboard_shows_the_metrics_that_the_code_records() -> None:
    text = (REPO / "jobs" / "grafana.json").read_text()
    board = json.loads(text)
    shown = {word for panel in board["panels"] for target in panel["targets"] for word in _metrics(target["expr"])}
    exported = {f"ray_{name}" for name in GAUGES} | {f"ray_{name}_total" for name in COUNTERS}
    assert shown == exported
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    variables = {variable["name"] for variable in board["templating"]["list"]}
    assert variables == {"datasource", "run"}
    assert all('run=~"$run"' in target["expr"] for panel in board["panels"] for target in panel["targets"])


def _metrics(expression: str) -> list[str]:
    separated = "".join(letter if letter.isalnum() or letter == "_" else " " for letter in expression)
    return [word for word in separated.split() if word.startswith("ray_rarefy_")]


@pytest.fixture(scope="module")
def local_ray(open_ray: None) -> Iterator[None]:
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20)
    yield
    ray.shutdown()


@pytest.mark.slow
def test_the_output_of_a_killed_actor_is_found(local_ray: None) -> None:
    class Talker:  # local, so that Ray sends the class itself: workers cannot import this file
        def speak(self, text: str) -> None:
            print(text, flush=True)

    handle: Any = ray.remote(Talker).remote()
    ray.get(handle.speak.remote("last words"))
    ray.kill(handle)
    assert "last words" in actor_output(handle._actor_id.hex())
    assert actor_output("00" * 16) == ""
    assert actor_output("not an id") == ""


@pytest.mark.slow
def test_metrics_count_every_image_once(local_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = RunMetrics("tiny", "d")
    counted: list[float] = []
    monkeypatch.setattr(metrics._counters["rarefy_images"], "inc", lambda value: counted.append(value))
    for done in (104.0, 106.0, 105.0, 110.0):  # an actor is lost with what it had begun
        metrics.status(replace(STATUS, done=done, resumed=100))
    assert sum(counted) == 10
    metrics.status(replace(STATUS, done=108.0, resumed=106))  # two of them are made again
    assert sum(counted) == 12
    for event in (RETRY, GIVEN_UP, replace(RETRY, what=What.ACTOR_LOST, node=None)):
        metrics.event(event)
