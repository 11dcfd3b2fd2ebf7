"""Options of generate on the command line, and the exit code of what may go better later."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rarefy.cli import main
from rarefy.errors import RarefyError, ShardError, StorageError, TemporaryError
from rarefy.generate import driver
from rarefy.generate.driver import GenerateOptions, _given_up_earlier
from rarefy.shards.store import Store

DEMO = str(Path(__file__).parents[2] / "manifests" / "demo.toml")
ACCEPT = """
[accept]
on_class = true
max_candidates = 4
"""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--actors", "many"], "--actors: 'many' is not a number or max"),
        (["--actors", "0"], "actors: 0 is not from 1 to 99999"),
        (["--gpus-per-actor", "1.5"], "gpus_per_actor: 1.5 is not 0, a fraction below 1 in steps of 0.0001"),
        (["--shard-timeout", "0"], "shard_timeout_s: 0.0 is not a number of seconds above 0"),
        (["--storage-patience", "inf"], "storage_patience_s: inf is not a number of seconds above 0"),
        (["--max-candidates", "9"], "--max-candidates: 9 is not of use here: the manifest has no [accept]"),
        (["--keep-exhausted"], "--keep-exhausted: True is not of use here: the manifest has no [accept]"),
    ],
)
def test_options_out_of_range_are_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = tmp_path / "manifest.toml"
    manifest.write_text('name = "tiny"\n[model]\npreset = "fashion-mnist-28"\n[classes]\nper_class = 2\n')
    assert main(["generate", str(manifest), "--out", str(tmp_path / "out"), *words]) == 2
    errors = capsys.readouterr().err
    assert message in errors and errors.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("error", "code"), [(TemporaryError("head"), 75), (StorageError("503"), 75), (ShardError("no image"), 2)]
)
def test_exit_codes(
    error: RarefyError, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[GenerateOptions] = []

    def fail(manifest: object, options: GenerateOptions, *rest: object, **more: object) -> None:
        given.append(options)
        raise error

    monkeypatch.setattr(driver, "generate", fail)
    words = ["--actors", "max", "--max-candidates", "64", "--keep-exhausted", "--storage-patience", "7"]
    assert main(["generate", DEMO, "--out", str(tmp_path / "out"), *words]) == code
    assert capsys.readouterr().err == f"rarefy: error: {error}\n"
    expected = {"max_candidates": 64, "keep_exhausted": True, "storage_patience_s": 7.0}
    assert given == [GenerateOptions(str(tmp_path / "out"), **expected)]  # type: ignore[arg-type]


def test_shards_that_were_given_up_are_known_to_the_next_session(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert _given_up_earlier(store, 10) == set()
    store.write_bytes("logs/failures.json", json.dumps([{"shard": f"rare-{k:06d}"} for k in (3, 9, 10)]).encode())
    assert _given_up_earlier(store, 10) == {3, 9}
    for damaged in (b"", b"{}", b"[1]", b'[{"shard": 5}]', b'[{"shard": "rare-x"}]', b"\xff"):
        store.write_bytes("logs/failures.json", damaged)
        assert _given_up_earlier(store, 10) == set()
