"""The command line: exit codes, one-line errors, and no output after an error."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_audit import make_result, write_rows

from rarefy.audit.audit import AuditOptions
from rarefy.audit.schema import BOOTSTRAP_PATH, METRICS_PATH
from rarefy.bench.bench import Bench, BenchResult, Point
from rarefy.bench.step import Split
from rarefy.cli import main, make_parser
from rarefy.command_line import EXAMPLES, GROUPS
from rarefy.errors import DataError
from rarefy.guidance.base import Networks, StepState
from rarefy.guidance.terms import SelfGuided
from rarefy.manifest import Manifest, load_manifest
from rarefy.run_commands import find_places
from rarefy.shards.store import Store

REPO = Path(__file__).parents[2]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail with exit code 2; returns the line on stderr."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("rarefy: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.fixture
def finished(runs: Any, tmp_path: Path) -> Path:
    """An output with all shards of ``runs.manifest(steps=2)`` committed."""
    out, path = tmp_path / "finished", runs.manifest(steps=2)
    runs.undisturbed(path, out)
    manifest = load_manifest(path)
    (out / "state" / "run.json").write_text(json.dumps({"manifest_digest": manifest.digest}))
    (out / "manifest.toml").write_text(manifest.text)
    return out


@pytest.mark.parametrize(
    ("words", "both", "code"),
    [
        ("-m rarefy models --json", False, 141),
        ("-u -m rarefy models --json", True, 141),
        ("-m rarefy --version", False, 0),
        ("-m rarefy status nowhere", False, 2),
        ("-m rarefy status nowhere", True, 141),
    ],
)
def test_a_reader_that_has_gone_ends_a_command_quietly(words: str, both: bool, code: int) -> None:
    """As in ``rarefy models | head``; both: with ``2>&1``, so that error messages have no reader either."""
    reading, writing = os.pipe()
    os.close(reading)
    stderr = writing if both else subprocess.PIPE
    done = subprocess.run([sys.executable, *words.split()], stdout=writing, stderr=stderr, text=True, check=False)
    os.close(writing)
    assert done.returncode == code
    assert (done.stderr or "").startswith("rarefy: error: out: ") if code == 2 else not done.stderr


def test_another_broken_pipe_is_a_fault(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*arguments: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("rarefy.status.read_status", fail)
    assert main(["status", "nowhere"]) == 70
    assert "BrokenPipeError" in capsys.readouterr().err


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_of_a_help_text_can_be_typed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*name.split(), "--help"])
    assert textwrap.indent(EXAMPLES[name], "  ") in capsys.readouterr().out
    for line in re.sub(r"\\\n *", "", EXAMPLES[name]).splitlines():
        words = line.split("   ")[0].partition(" >")[0]  # without the explanation after it, and where the output goes
        command = shlex.split(words.removeprefix("source <(").removesuffix(")"))
        assert command[: len(name.split()) + 1] == ["rarefy", *name.split()]
        if "--help" not in command:
            assert callable(make_parser().parse_args(command[1:]).handler)


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers of all commands and their subcommands."""
    for action in parser._actions:
        for each in (action.choices or {}).values() if isinstance(action.choices, dict) else ():
            yield each
            yield from parsers(each)


def test_every_command_has_examples_a_group_and_defaults() -> None:
    every = {parser.prog.partition(" ")[2]: parser for parser in parsers(make_parser())}
    assert every.keys() == EXAMPLES.keys()
    assert {name for name in every if " " not in name} <= {name for names in GROUPS.values() for name in names}
    for name, parser in every.items():
        for action in parser._actions:
            if action.option_strings and action.nargs != 0 and not action.required:
                assert "default" in (action.help or ""), (name, action.option_strings)


def test_help_is_wrapped_at_the_terminals_width(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    for name in ("", "run", "audit"):
        with pytest.raises(SystemExit):
            main([*name.split(), "--help"])
        text = capsys.readouterr().out
        assert max(map(len, text.partition("\nexample")[0].splitlines())) <= 60, name


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("ru", {"run"}),
        ("run --ac", {"--actors"}),
        ("run ra", {"rare.toml"}),
        ("run rare.toml --compile f", {"full"}),
        ("import d", {"diffusers"}),
        ("status o", {"out"}),
    ],
)
def test_bash_completes(words: str, found: set[str], tmp_path: Path, completion: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "rare.toml").touch()
    typed = f"COMP_WORDS=(rarefy {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMP_LINE='rarefy {words}'"
    ask = f'{typed}; _shtab_rarefy; printf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run(
        ["bash", "-c", f"{completion}\n{ask}"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert {line.strip().rstrip("/") for line in done.stdout.splitlines()} == found, done.stderr


@pytest.fixture(scope="module")
def completion() -> str:
    """The script that bash reads."""
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        assert main(["completion", "bash"]) == 0
    return stdout.getvalue()


@pytest.mark.parametrize("shell", ["zsh", "fish", "tcsh"])
def test_completion_of_other_shells(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("run", "guided-diffusion", "actors"))
    assert main(["completion", shell, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"shell": shell, "script": text.removesuffix("\n")}


@pytest.mark.parametrize("command", ["view", "report", "status", "verify", "export"])
def test_what_is_no_run_is_said_in_one_line_with_the_nearest(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rare-1").mkdir()
    assert main([command, f"{tmp_path}/rare", *(["out"] if command == "export" else [])]) == 2
    place = f"'{tmp_path}/rare' is not a rarefy run: it has no manifest.toml (nearest: {tmp_path}/rare-1)"
    assert capsys.readouterr().err == f"rarefy: error: out: {place}\n"


def test_a_gpu_that_is_not_there_is_reported_under_the_name_of_the_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rarefy.generate.fit.visible_gpus", lambda: 0)
    assert main(["run", "smoke", "--out", str(tmp_path / "out"), "--gpus-per-actor", "0.5"]) == 2
    assert capsys.readouterr().err.startswith("rarefy: error: gpus_per_actor: 0.5 is not possible here: ")


@pytest.mark.parametrize(
    ("words", "near"),
    [
        ("rnu manifest.toml", "nearest: run"),
        (
            "run rare.toml --out out --actor-s 2",
            "unrecognized arguments: --actor-s 2; nearest: --actors (see rarefy run",
        ),
        ("run rare.toml --out out --compile fll", "'fll' is not one of auto, off, full (nearest: full)"),
        ("plan DIR/rare.tml", "(nearest: DIR/rare.toml)"),
        ("plan DIR/../TWIN/rare.toml", "(nearest: DIR)"),
        ("status DIR/outt", "(nearest: DIR/out)"),
        ("models fashion-mnist-29", "(nearest: fashion-mnist-28)"),
        ("bench --preset fashion-mist-28", "(nearest: fashion-mnist-28)"),
        ("audit DIR/out --extractor efficientnet-lite0-nativ", "(nearest: efficientnet-lite0-native)"),
        ("train DIR/rare.tml", "(nearest: DIR/rare.toml)"),
        ("init DIR/phtos --out DIR/new", "(nearest: DIR/photos)"),
    ],
)
def test_a_mistyped_name_gets_a_suggestion(
    words: str, near: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("out", "photos"):
        (tmp_path / folder).mkdir()
    (tmp_path / "rare.toml").write_text("")
    (tmp_path / "out" / "manifest.toml").write_text("")
    places = {"DIR/..": str(tmp_path.parent), "DIR": str(tmp_path), "TWIN": f"{tmp_path.name}x"}
    for name, place in places.items():
        words, near = words.replace(name, place), near.replace(name, place)
    assert near in refused(words.split(), capsys)


@pytest.mark.parametrize(
    ("old", "new", "near"),
    [
        ("[sampler]", "[smapler]", "sampler"),
        ("per_class = 2", 'counts = { "trousers" = 1 }', "trouser"),
        ("fashion-mnist-28", "fashion-mist-28", "fashion-mnist-28"),
        ("[sampler]", '[[guidance]]\nterm = "low-confidense"\n[sampler]', "low-confidence"),
        ("[sampler]", "[gates]\nrecal = { min = 0.1 }\n[sampler]", "recall"),
        ("[sampler]", '[sampler]\nmethod = "dpm-solver"', "dpm-solver++"),
    ],
)
def test_a_mistyped_name_in_a_manifest_gets_a_suggestion(
    old: str, new: str, near: str, runs: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = runs.manifest()
    path.write_text(path.read_text().replace(old, new))
    assert f"(nearest: {near})" in refused(["plan", str(path)], capsys)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("steps", "stops", ["sampler.stops", "steps"]),
        ("per_class = 2", "per_class = -2", ["classes.per_class", "-2"]),
        ("per_class = 2", 'counts = { "12" = 1 }', ["'12'", "0 to 9"]),
        ("steps = 16", "steps = 5000", ["5000", "1000"]),
        ("fashion-mnist-28", "adm-imagenet-64", ["model.checkpoint", "adm-imagenet-64"]),
        ("[sampler]", 'checkpoint = "/nowhere/x.pt"\n[sampler]', ["/nowhere/x.pt", "can be read"]),
    ],
)
@pytest.mark.parametrize("command", ["generate", "run"])
def test_bad_manifests(
    command: str, old: str, new: str, named: list[str], runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = runs.manifest(), tmp_path / "out"
    path.write_text(path.read_text().replace(old, new))
    message = refused([command, str(path), "--out", str(out)], capsys)
    assert all(part in message for part in named), message
    assert not out.exists()


def test_an_output_that_holds_another_run(runs: Any, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    message = refused(["generate", str(runs.manifest(steps=3)), "--out", str(finished)], capsys)
    assert str(finished) in message
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_an_output_that_holds_other_files(runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "photos"
    out.mkdir()
    (out / "holiday.jpg").write_bytes(b"\xff")
    assert "holiday.jpg" in refused(["generate", str(runs.manifest()), "--out", str(out)], capsys)
    assert [path.name for path in out.iterdir()] == ["holiday.jpg"]


def test_an_output_that_cannot_be_written(runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("not a folder")
    for out in (tmp_path / "file" / "out", Path("/proc/rarefy/out")):
        message = refused(["generate", str(runs.manifest()), "--out", str(out)], capsys)
        assert "out: " in message
        assert "able (" in message  # readable or writable, and why not


def test_too_little_space(runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = runs.manifest(classes="total = 40_000_000_000")
    path.write_text(path.read_text().replace("shard_size = 2", "shard_size = 100_000"))
    message = refused(["generate", str(path), "--out", str(tmp_path / "out")], capsys)
    assert "bytes free" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_where_there_is_none(runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", str(runs.manifest()), "--out", str(tmp_path / "out"), "--gpus-per-actor", "0.5"]
    message = refused(command, capsys)
    assert "gpus_per_actor" in message
    assert "0 GPUs" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--actors", "0"], ["actors", "0", "from 1"]),
        (["--actors", "two"], ["--actors", "two"]),
        (["--gpus-per-actor", "-1"], ["gpus_per_actor", "-1"]),
        (["--max-attempts", "0"], ["max_attempts", "0"]),
        (["--shard-timeout", "nan"], ["shard_timeout", "nan"]),
        (["--steps", "3"], ["--steps"]),
        (["--compile", "all"], ["--compile", "all", "full"]),
    ],
)
def test_bad_flags(
    flags: list[str], named: list[str], runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(["generate", str(runs.manifest()), "--out", str(tmp_path / "out"), *flags], capsys)
    assert all(part in message for part in named), message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["seal", "verify"])
def test_places_without_a_run(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "manifest.toml" in refused([command, str(tmp_path / "nothing")], capsys)
    assert not (tmp_path / "nothing").exists()


def test_a_missing_command_or_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "COMMAND" in refused([], capsys)
    assert "none.toml" in refused(["plan", str(tmp_path / "none.toml")], capsys)


def test_plan(runs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = runs.manifest(classes='counts = { "bag" = 3, "0" = 2 }', steps=2)
    assert main(["plan", str(path), "--json"]) == 0
    actual = json.loads(capsys.readouterr().out)
    assert (actual["images"], actual["shards"], actual["steps"]) == (5, 3, 2)
    assert actual["classes"] == [[0, "t-shirt/top", 2], [8, "bag", 3]]
    assert actual["digest"] == load_manifest(path).digest
    assert actual["estimated_seconds"] > 0
    assert main(["plan", str(path)]) == 0
    text = capsys.readouterr().out
    assert "size (estimate)" in text
    assert "time (estimate)" in text


def test_plan_counts_the_steps_that_are_taken_and_whole_rounds_of_a_term(
    runs: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    acted: list[int] = []
    gradient = SelfGuided.gradient

    def counted(term: SelfGuided, state: StepState, networks: Networks) -> torch.Tensor:
        acted.append(state.step)
        return gradient(term, state, networks)

    monkeypatch.setattr(SelfGuided, "gradient", counted)
    terms = '[[guidance]]\nterm = "self-guided"\nevery = 6\n[[guidance]]\nterm = "boost-and-skip"\nstart = 500'
    assert main(["plan", str(runs.manifest(terms, steps=40)), "--json"]) == 0
    actual = json.loads(capsys.readouterr().out)
    assert actual["steps"] == 20
    assert actual["guidance"] == ["self-guided", "boost-and-skip"]
    assert actual["estimated_seconds"] > 0
    assert acted == [0], "once in the six timed steps; the warm-up runs other steps"


def test_plan_of_a_model_whose_weights_are_not_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(REPO / "manifests" / "imagenet256-rare.toml"), "--json"]) == 0
    actual = json.loads(capsys.readouterr().out)
    assert actual["estimated_seconds"] is None
    assert "256x256_diffusion.pt" in actual["estimate"]


def test_estimated_bytes_are_near_the_real_ones(finished: Path, runs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(finished / "manifest.toml"), "--json"]) == 0
    estimate = json.loads(capsys.readouterr().out)["estimated_bytes"]
    real = sum(len(data) for data in runs.tars(finished).values())
    assert 0.5 * real < estimate < 1.5 * real


def test_verify_and_seal_find_damage(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(finished)]) == 0
    assert main(["seal", str(finished), "--json"]) == 0
    captured = capsys.readouterr().out
    assert json.loads(captured[captured.index("{") :])["samples"] == 20
    tar = finished / "shards" / "rare-000002.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    assert main(["verify", str(finished), "--json"]) == 1
    assert list(json.loads(capsys.readouterr().out)["problems"]) == ["rare-000002"]
    message = refused(["seal", str(finished)], capsys)
    assert "rare-000002" in message and "nothing was changed, _SUCCESS included; seal --repair withdraws" in message
    assert (finished / "_SUCCESS").exists() and (finished / "state" / "rare-000002.json").exists()
    assert "_SUCCESS deleted; 1 markers" in refused(["seal", str(finished), "--repair"], capsys)
    assert not (finished / "_SUCCESS").exists()
    assert not (finished / "state" / "rare-000002.json").exists()


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    actual = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert actual["fashion-mnist-28"]["embedded"]
    assert actual["adm-imagenet-64"]["image_size"] == 64
    assert actual["adm-imagenet-256-uncond"]["num_classes"] is None


def test_help_by_module_name_is_quick_and_loads_nothing_heavy() -> None:
    """``python -m rarefy``; -X importtime lists the imported modules on stderr."""
    environment = {**os.environ, "PYTHONPATH": str(REPO / "pipeline")}
    command = [sys.executable, "-X", "importtime", "-m", "rarefy", "--help"]
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: rarefy ")
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "rarefy.cli" in modules
    assert not {"torch", "ray", "numpy", "pyarrow", "webdataset"} & modules


def strict(text: str) -> Any:
    """The only JSON value of a text, which has no NaN or Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def talk(value: object) -> Callable[..., object]:
    """A stand-in for something slow, which prints as libraries do."""

    def slow(*arguments: object) -> object:
        print("a library talks")
        return value

    return slow


def test_with_json_stdout_is_one_strict_value(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    point = Point(1, 8, 28, float("nan"), Split(0.1, 0.1, 0.1, 0.1), float("inf"), 1, 1)
    machine: dict[str, object] = {"device": "cpu", "cores": 2, "threads": 1, "torch": "2", "date": "today"}
    result = BenchResult("m", "w", "exact", "float32", "auto", 1, 8, "", (point,), (), (), machine)
    monkeypatch.setattr(Bench, "run", talk(result))
    for name in ("run_audit", "check_before"):
        monkeypatch.setattr(f"rarefy.audit.audit.{name}", talk(make_result()))
    monkeypatch.setattr("rarefy.audit.page.report.write_report", talk("audit/report.html"))
    for name in ("plain", "rare"):
        store = Store(str(tmp_path / name))
        store.write_bytes(METRICS_PATH, json.dumps(make_result()).encode())
        write_rows(store, BOOTSTRAP_PATH, [{"metric": "recall", "replicate": k, "value": 0.5} for k in range(200)])
    manifest, out = str(finished / "manifest.toml"), str(finished)
    commands = [
        ["plan", manifest],
        ["generate", manifest, "--out", out],
        ["run", manifest, "--out", out],
        *([name, out] for name in ("seal", "verify", "status", "audit", "report")),
        ["compare", str(tmp_path / "plain"), str(tmp_path / "rare"), "--page", str(tmp_path / "compare.html")],
        ["models"],
        ["models", "fashion-mnist-28"],
        ["bench", manifest],
    ]
    for words in commands:
        assert main([*words, "--json"]) in (0, 3), words
        assert isinstance(strict(capsys.readouterr().out), dict | list), words


def test_run_takes_the_audits_options(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audited: list[AuditOptions] = []

    def check_before(store: Store, manifest: Manifest, options: AuditOptions) -> None:
        audited.append(options)
        raise DataError("far enough")

    monkeypatch.setattr("rarefy.audit.audit.check_before", check_before)
    words = ["run", str(finished / "manifest.toml"), "--out", str(finished)]
    flags = "--reference photos --training more --limit 500 --k 5 --tail keys.txt --extractor a=w --extractor b"
    assert main([*words, *flags.split()]) == 2
    (options,) = audited
    assert (options.reference, options.training, options.limit, options.k) == ("photos", "more", 500, 5)
    assert (options.tail, options.extractor, options.extractor_weights) == ("keys.txt", "a", "w")
    assert options.further_extractors == (("b", None),)
    assert main(words) == 2
    assert dataclasses.replace(audited[1], gates=None, allow_plugins=False) == AuditOptions()


@pytest.mark.parametrize(
    ("device", "gpus", "on_cluster", "places"),
    [
        (None, None, False, ("cpu", 0.0)),
        (None, 0.5, False, ("cuda", 0.5)),
        (None, 0.5, True, ("cpu", 0.5)),  # the driver's machine may have no GPU
        ("cpu", None, False, ("cpu", 0.0)),
        ("cpu", 0.0, False, ("cpu", 0.0)),
        ("cuda", None, True, ("cuda", 1.0)),
        ("cuda:1", 0.25, False, ("cuda:1", 0.25)),
    ],
)
def test_where_run_samples_and_audits(
    device: str | None, gpus: float | None, on_cluster: bool, places: tuple[str, float]
) -> None:
    assert find_places(device, gpus, on_cluster) == places


@pytest.mark.parametrize(("device", "gpus"), [("cpu", "1"), ("cuda", "0")])
def test_a_device_that_contradicts_the_gpus(
    device: str, gpus: str, runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", str(runs.manifest()), "--out", str(tmp_path / "out"), "--device", device, "--gpus-per-actor", gpus]
    message = f"device: '{device}' is not possible with --gpus-per-actor {gpus}: leave one of the two out"
    assert message in refused(words, capsys)
