"""``rarefy push`` of data sets, against a stand-in for the Hub: what arrives, faults, and what is refused."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import huggingface_hub.errors
import pyarrow.parquet as pq
import pytest
from publish.hub_stand_in import CLOSED, LOST, HubStandIn
from publish.sealed_run import write_run

from benchmarks.synthetic import commit_synthetic
from rarefy.cli import main
from rarefy.errors import OutputError, TemporaryError
from rarefy.manifest import parse_manifest
from rarefy.plan import make_plan
from rarefy.publish.content import read_content
from rarefy.publish.data_set import without_place
from rarefy.publish.hub import Hub, Target
from rarefy.select.stage import SelectOptions
from rarefy.shards.claim import claim_output
from rarefy.shards.store import Store
from rarefy.stages import seal_run, select, verify_run

NAME = "org/rare"
LOAD = """
from datasets import load_dataset
images = load_dataset("org/rare", split="train")
print(len(images), images[0]["png"].mode, images[0]["png"].size)
"""
TARS = [f"shards/rare-00000{number}.tar" for number in range(3)]
SELECTED = """
name = "chosen"
model.preset = "fashion-mnist-28"
sampler = { method = "ancestral", steps = 2 }
classes.total = 10
output.shard_size = 8
select = { from = 2, by = "entropy", inside = false }
"""


def push(hub: HubStandIn, source: object, *options: str, name: str = NAME) -> int:
    return main(["push", str(source), name, "--endpoint", hub.url, *options])


def swap_rows(copy: Path) -> None:
    """Exchange the first two samples, which are of two classes, in a shard's metadata."""
    path = copy / "metadata" / "rare-000000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.take([1, 0, *range(2, len(table))]), path)


def arrived(hub: HubStandIn, name: str = NAME) -> dict[str, bytes]:
    return {path: data for path, data in hub.repositories[name].files.items() if path != ".gitattributes"}


def local(out: Path) -> dict[str, bytes]:
    files = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    return {path: data for path, data in files.items() if not path.startswith("logs/")}


def test_a_pushed_data_set_arrives_and_its_download_passes_verify(hub: HubStandIn, out: Path, tmp_path: Path) -> None:
    assert push(hub, out) == 0
    assert arrived(hub) == local(out)
    assert hub.repositories[NAME].history[1:] == ["synthetic, by rarefy"] and not hub.repositories[NAME].private
    copy = tmp_path / "copy"
    huggingface_hub.snapshot_download(NAME, repo_type="dataset", local_dir=copy, endpoint=hub.url)
    assert verify_run(Store(str(copy))) == {}


def test_a_pushed_data_set_is_one_for_load_dataset(hub: HubStandIn, out: Path, tmp_path: Path) -> None:
    """In a process of its own, because ``datasets`` reads the Hub's address when it is imported."""
    pytest.importorskip("datasets")
    assert push(hub, out) == 0
    places = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    answer = subprocess.run([sys.executable, "-c", LOAD], env={**os.environ, **places}, capture_output=True, text=True)
    assert answer.stdout == "12 L (28, 28)\n", answer.stderr


def test_an_answer_that_is_no_json_is_one_line(hub: HubStandIn, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.babbles = True
    assert push(hub, out) == 2
    assert capsys.readouterr().err.startswith(f"rarefy: error: {NAME}: the Hub refuses this")
    assert not arrived(hub)


def test_a_second_push_sends_nothing_and_says_so(
    hub: HubStandIn, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push(hub, out) == 0
    assert "sent 15 of 15 files" in capsys.readouterr().out
    before = len(hub.requests)
    assert push(hub, out) == 0
    assert "nothing to send" in capsys.readouterr().out
    assert not [each for each in hub.requests[before:] if "PUT" in each or "/commit/" in each or "/preupload/" in each]


def test_files_in_object_storage_are_pushed_through_copies(hub: HubStandIn, tmp_path: Path) -> None:
    store = Store(f"memory://push-{tmp_path.name}")
    write_run(store)
    assert push(hub, f"memory://push-{tmp_path.name}") == 0
    assert arrived(hub)[TARS[1]] == store.read_bytes(TARS[1])
    assert arrived(hub)["_SUCCESS"] == store.read_bytes("_SUCCESS")


def test_a_large_set_goes_in_parts_and_is_complete_at_last(
    hub: HubStandIn, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rarefy.publish.push.PART_FILES", 2)
    complete: list[bool] = []
    hub.before = lambda name: complete.append("_SUCCESS" in arrived(hub)) if "/commit/" in name else None
    assert push(hub, out) == 0
    assert complete == [False] * 8
    assert arrived(hub) == local(out)


def test_a_set_does_not_look_complete_while_it_is_replaced(
    hub: HubStandIn, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert push(hub, out) == 0
    monkeypatch.setattr("rarefy.publish.push.PART_FILES", 2)
    for path in [*TARS[:2], "index.json"]:
        hub.repositories[NAME].files[path] = b"of another machine"
    complete: list[bool] = []
    hub.before = lambda name: complete.append("_SUCCESS" in arrived(hub)) if "/commit/" in name else None
    assert push(hub, out) == 0
    assert complete == [True, False, False]
    assert arrived(hub) == local(out)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/commit/", 503),
        ("POST", "/commit/", CLOSED),
        ("POST", "/commit/", LOST),
        ("POST", "/repos/create", 429),
        ("PUT", "/lfs/", 503),
    ],
)
def test_a_fault_that_passes_costs_a_repetition(
    hub: HubStandIn, out: Path, method: str, path: str, status: int
) -> None:
    hub.fail(method, path, status)
    assert push(hub, out) == 0
    assert arrived(hub) == local(out)
    assert len(hub.repositories[NAME].history) == 2


def test_after_an_outage_only_what_is_missing_is_sent(
    hub: HubStandIn, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rarefy.publish.push.PART_FILES", 4)
    monkeypatch.setattr("rarefy.publish.hub.PATIENCE_S", 0.0)
    commits: list[str] = []

    def outage(name: str) -> None:
        if "/commit/" in name:
            commits.append(name)
            if len(commits) == 3:
                hub.fail("POST", "/commit/", 503)

    hub.before = outage
    assert push(hub, out) == 75
    assert capsys.readouterr().err.count("\n") == 4  # three parts begin, one error
    there = set(arrived(hub))
    assert len(there) == 8
    assert push(hub, out) == 0
    assert "sent 7 of 15 files" in capsys.readouterr().out
    assert arrived(hub) == local(out)
    assert hub.count("PUT /lfs/") == len({path for path in local(out) if path.endswith((".tar", ".parquet"))})


def test_a_killed_push_goes_on(hub: HubStandIn, out: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rarefy", "push", str(out), NAME, "--endpoint", hub.url]
    process = subprocess.Popen(command, env={**os.environ, "HF_HUB_DISABLE_XET": "1"}, stderr=subprocess.DEVNULL)

    def kill(name: str) -> None:
        if "/commit/" in name:
            process.send_signal(signal.SIGKILL)
            process.wait()
            hub.fail("POST", "/commit/", CLOSED)

    hub.before = kill
    assert process.wait() == -signal.SIGKILL
    assert arrived(hub) == {}
    hub.before = lambda name: None
    uploads = hub.count("PUT /lfs/")
    assert uploads == 6
    assert push(hub, out) == 0
    assert arrived(hub) == local(out) and hub.count("PUT /lfs/") == uploads


def test_a_file_that_arrives_wrong_is_found(
    hub: HubStandIn, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_one(name: str) -> None:
        if "/tree/" in name and arrived(hub):
            hub.repositories[NAME].files[TARS[1]] = b"broken"

    hub.before = break_one
    assert push(hub, out) == 75
    assert f"not there as sent: {TARS[1]};" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "token", "status", "code", "message"),
    [
        (NAME, "hf_wrong", 0, 2, "log in with `hf auth login`, or set HF_TOKEN"),
        ("others/rare", None, 0, 2, "your token may not write there"),
        (NAME, None, 404, 2, "there is no such organization, repository or revision"),
        (NAME, None, 429, 75, "cannot be used at the moment"),
        (NAME, None, 503, 75, "cannot be used at the moment"),
        (NAME, None, CLOSED, 75, "cannot be used at the moment"),
        ("rare", None, 0, 2, "name: 'rare' is not org/name"),
        ("a/b/c", None, 0, 2, "name: 'a/b/c' is not org/name"),
        ("org/-rare", None, 0, 2, "name: 'org/-rare' is not org/name"),
    ],
)
def test_errors_are_one_line(
    hub: HubStandIn,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    token: str | None,
    status: int,
    code: int,
    message: str,
) -> None:
    monkeypatch.setattr("rarefy.publish.hub.PATIENCE_S", 0.1)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    elif status or code == 75:
        hub.fail("POST", "/repos/create", status, times=1000)
    assert push(hub, out, name=name) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert "hf_" not in error
    assert not hub.repositories


def test_no_server_is_a_reason_to_try_again(
    hub: HubStandIn, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rarefy.publish.hub.PATIENCE_S", 0.1)
    assert main(["push", str(out), NAME, "--endpoint", "http://127.0.0.1:9"]) == 75
    assert "run the same command again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (RuntimeError("xet: connection reset"), TemporaryError, "at the moment (xet: connection reset)"),
        (type("Timeout", (OSError,), {})("of requests"), TemporaryError, "at the moment (of requests)"),
        (PermissionError("xet: token"), OutputError, "your token may not write there"),
        (huggingface_hub.errors.OfflineModeIsEnabled("offline"), OutputError, "HF_HUB_OFFLINE is set"),
        (huggingface_hub.errors.LocalTokenNotFoundError("none"), OutputError, "set HF_TOKEN"),
        (ValueError("LFS batch API returned errors"), OutputError, "refuses this (LFS batch API returned errors)"),
    ],
)
def test_errors_without_an_answer_are_told_apart(error: Exception, kind: type[Exception], message: str) -> None:
    hub = Hub(Target(NAME, "dataset"))

    def fail() -> None:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rarefy.publish.hub.PATIENCE_S", 0.0)
        with pytest.raises(kind, match=re.escape(message)):
            hub._call(fail)


def test_a_dry_run_asks_the_hub_nothing(hub: HubStandIn, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert push(hub, out, "--dry-run", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert {file["path"]: file["size_bytes"] for file in result["files"]} == {k: len(v) for k, v in local(out).items()}
    assert result["left_out"] == ["logs: not part of the data set"]
    assert not hub.requests


def test_a_run_that_is_not_sealed_or_damaged_is_refused(
    hub: HubStandIn, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (out / "_SUCCESS").rename(out / "kept")
    assert push(hub, out) == 2
    assert "is not sealed; run rarefy seal" in capsys.readouterr().err
    (out / "kept").rename(out / "_SUCCESS")
    tar = bytearray((out / TARS[1]).read_bytes())
    tar[1000] ^= 1
    (out / TARS[1]).write_bytes(tar)
    assert push(hub, out) == 2
    assert "damaged or missing files, and nothing was sent: rare-000001" in capsys.readouterr().err
    assert not hub.requests


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("---\nlicense", "\nlicense", "it has no metadata at its top"),
        ('"n<1K"', '"few"', "size_categories: 'few' is not one of"),
        ("- synthetic", "- 5", "tags: "),
        ("path: shards/*.tar", "path: images/*.tar", "configs.data_files: 'images/*.tar' is not the path of any file"),
        ("pretty_name:", "pretty_name: [", "its metadata cannot be read"),
    ],
)
def test_a_card_that_the_hub_would_refuse_is_refused_here(
    hub: HubStandIn, out: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str
) -> None:
    card = out / "README.md"
    card.write_text(card.read_text().replace(old, new, 1))
    assert push(hub, out) == 2
    assert message in capsys.readouterr().err
    assert not hub.requests


def test_what_the_hub_says_of_the_card_comes_before_the_files(
    hub: HubStandIn, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = out / "README.md"
    card.write_text(card.read_text().replace('license: "apache-2.0"', "license: nonsense"))
    assert push(hub, out) == 2
    assert "the Hub refuses its metadata" in capsys.readouterr().err
    assert not hub.count("PUT|/commit/")


def test_a_card_without_a_licence_gets_a_note(out: Path) -> None:
    assert "no licence" not in " ".join(read_content(str(out)).notes)
    card = out / "README.md"
    card.write_text(card.read_text().replace('license: "apache-2.0"', "license: unknown"))
    assert "the card names no licence" in read_content(str(out)).notes[0]


def test_another_set_in_the_repository_is_not_overwritten(
    hub: HubStandIn, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(Store(str(tmp_path / "other")), shards=2)
    assert push(hub, tmp_path / "other") == 0
    before = arrived(hub)
    capsys.readouterr()
    assert push(hub, out) == 2
    assert "has another data set: its manifest.toml differs" in capsys.readouterr().err
    assert arrived(hub) == before
    assert push(hub, out, "--replace") == 0
    assert arrived(hub) == local(out)


def test_a_repository_with_other_files_is_not_overwritten(
    hub: HubStandIn, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push(hub, out) == 0
    files = hub.repositories[NAME].files
    del files["manifest.toml"]
    files["notebook.ipynb"] = b"{}"
    assert push(hub, out) == 2
    assert "has other files: notebook.ipynb" in capsys.readouterr().err


def test_own_files_that_are_gone_are_deleted_and_the_users_stay(
    hub: HubStandIn, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (out / "excluded.txt").write_text("00000000001\n")
    assert push(hub, out) == 0
    hub.repositories[NAME].files.update({"LICENSE": b"mine", "figure.svg": b"<svg/>"})
    (out / "excluded.txt").unlink()
    assert push(hub, out) == 0
    assert arrived(hub) == {**local(out), "LICENSE": b"mine", "figure.svg": b"<svg/>"}
    assert "deleted 1" in (text := capsys.readouterr().out) and "left as they are in the repository: figure.svg" in text


def test_private_is_private_or_refused(hub: HubStandIn, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert push(hub, out, "--private") == 0
    assert hub.repositories[NAME].private
    assert push(hub, out, name="org/public") == 0
    before = arrived(hub, "org/public")
    assert push(hub, out, "--private", name="org/public") == 2
    assert "it is there already and public" in capsys.readouterr().err
    assert arrived(hub, "org/public") == before


def test_a_revision_is_a_branch_of_its_own(hub: HubStandIn, out: Path) -> None:
    assert push(hub, out, "--revision", "v1") == 0
    assert push(hub, out, "--revision", "v1") == 0
    repository = hub.repositories[NAME]
    assert repository.branches["v1"].keys() > local(out).keys()
    assert arrived(hub) == {} and len(repository.history) == 2


def test_of_a_run_with_select_the_chosen_images_are_sent_and_verified(
    hub: HubStandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(str(tmp_path / "out"))
    manifest = parse_manifest(SELECTED, "test")
    claim_output(store, manifest.text, manifest.digest)
    for shard in range(make_plan(manifest).num_shards):
        commit_synthetic(store, manifest, shard, "test")
    seal_run(store)
    with pytest.raises(OutputError, match="not selected yet"):
        read_content(store.root)
    select(store, SelectOptions(), lambda *_: None)
    assert push(hub, store.root) == 0
    selected = local(tmp_path / "out" / "selected")
    assert arrived(hub) == {**selected, "manifest.toml": store.read_bytes("manifest.toml")}
    copy = tmp_path / "copy"
    huggingface_hub.snapshot_download(NAME, repo_type="dataset", local_dir=copy, endpoint=hub.url)
    assert verify_run(Store(str(copy))) == {}
    capsys.readouterr()
    assert push(hub, copy) == 0
    assert "nothing to send" in capsys.readouterr().out
    for name in ("shards/rare-000001.tar", "metadata/rare-000000.parquet"):
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(content[:-9])
        assert verify_run(Store(str(copy)))
        (copy / name).write_bytes(content)
    swap_rows(copy)
    assert "is not one that the plan has at its place" in verify_run(Store(str(copy)))["metadata"][0]


def test_the_place_of_a_local_model_folder_is_not_published() -> None:
    assert json.loads(without_place(b'{"where": "/home/ann/cats/model", "format": 1}'))["where"] == "model"
    assert json.loads(without_place(b'{"where": "hf://org/model", "format": 1}'))["where"] == "hf://org/model"


def test_without_the_hubs_library_one_line_says_what_to_install(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["push", str(out), NAME]) == 2
    assert capsys.readouterr().err == "rarefy: error: rarefy push needs huggingface_hub: pip install 'rarefy[hub]'\n"


def test_something_else_is_refused_with_a_guess(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "config.json").write_text("{}")
    assert main(["push", str(tmp_path / "mine"), NAME, "--dry-run"]) == 2
    assert f"did you mean {tmp_path}/mine/model?" in capsys.readouterr().err
    assert main(["push", str(tmp_path / "nothing"), NAME, "--dry-run"]) == 2
    assert "there is no such folder" in capsys.readouterr().err
