"""Whatever a manifest, a recipe, a gates file, config.json or model.json contains: it is read, or a named error.

No traceback, no hang, and one line that can be shown.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzzing import BOUNDED, changed, to_toml
from hypothesis import given
from hypothesis import strategies as st
from small_model import MODEL, refused, write_manifest, write_model

from rarefy.errors import RarefyError
from rarefy.fill import trained_on
from rarefy.gates import load_gates
from rarefy.manifest import load_manifest, parse_manifest, parse_unread_manifest
from rarefy.models.describe import describe
from rarefy.models.folder import config_content, find_model, read_model_folder
from rarefy.models.networks import build_network
from rarefy.models.run_model import RunModel, read_run_model
from rarefy.training.project import load_project
from rarefy.training.recipe import load_recipe, names_preset

SLOWEST_S = 5.0
MANIFEST: dict[str, Any] = {
    "name": "x",
    "seed": 3,
    "model": {"preset": "fashion-mnist-28"},
    "sampler": {"method": "ddim", "steps": 10, "eta": 0.5, "classifier_every": 1, "start": 900, "precision": "exact"},
    "guidance": [
        {"term": "low-confidence", "scale": [[0, 1.0], [900, 2.0]], "tau": 0.5, "window": [0, 500]},
        {"term": "entropy", "scale": 0.5},
        {"term": "self-guided", "scale": 0.2, "every": 2, "level": 0.5},
        {"term": "boost-and-skip", "gamma": 2, "start": 900},
        {"term": "low-confidence", "tau_quantiles": [0, 0.5, 1]},
    ],
    "classes": {"counts": {"0": 5, "Trouser": 7}},
    "accept": {"confidence": {"min": 0.1, "max": 0.9}, "entropy": {"max": 2.0}, "on_class": True, "exhausted": "keep"},
    "select": {"from": 4, "by": "avgknn", "on_class": True, "inside": False, "exhausted": "keep"},
    "output": {"shard_size": 10, "prefix": "rare"},
    "gates": {"recall": {"min": 0.4}, "coverage": {"per_class": {"min": 0.6}}, "duplicates": {"max": 0.01}},
}
SAME_NUMBER = MANIFEST | {"classes": {"ids": [0, "Trouser"], "per_class": 5}}
IN_TOTAL = MANIFEST | {"classes": {"total": 5}, "model": {"name": "adm-imagenet-64", "checkpoint": "a.pt"}}
IN_TOTAL |= {"select": {"from": 2, "by": "entropy", "inside": False}}
FILLED = MANIFEST | {"classes": {"fill": {"data": "photos", "to": 5}}}
OWN = MANIFEST | {"model": {"path": "model"}, "classes": {"total": 5}, "guidance": [{"term": "a.b:C", "scale": 1}]}
OTHER = {
    "kind": "diffusers",
    "image_size": 8,
    "in_channels": 1,
    "out_channels": 2,
    "num_classes": 4,
    "options": {"a": 1},
}
CONFIG = config_content(MODEL) | {
    "schedule": {"name": "linear", "steps": 100, "prediction": "v", "beta_range": [0.1, 0.2]}
}
CONFIGS = [
    config_content(find_model("fashion-mnist-28")),
    CONFIG,
    CONFIG | {"unet": OTHER},
    CONFIG | {"unet": OTHER | {"kind": "a.b:c"}, "classifier": None},
]
RUN_MODEL: dict[str, Any] = {
    "format": "rarefy-run-model-v1",
    "where": "/model",
    "sha256": {"unet": "a" * 64, "classifier": None, "reference": None},
    "config": CONFIG,
    "plugins": [{"class": "a.b:C", "name": "c", "values": {"scale": 1.0, "window": None}}],
}
NETWORK = {
    "model_channels": 32,
    "num_res_blocks": 1,
    "attention_resolutions": [2],
    "channel_mult": [1, 2],
    "num_head_channels": 32,
}
TRAIN = {"images": 100, "batch": 4, "lr": 1e-3, "ema_halflife": 10, "balance": 0.5, "precision": "tf32", "crop": 1}
PROJECT: dict[str, Any] = {
    "name": "x",
    "data": "photos",
    "model": "new",
    "image_size": 8,
    "channels": 1,
    "class_names": ["a", "b"],
    "schedule": "cosine",
    "unet": NETWORK,
    "classifier_network": NETWORK,
    "diffusion": TRAIN,
    "classifier": TRAIN | {"ect": 0.1},
    "judge": TRAIN,
}
RECIPE = {"preset": "fashion-mnist-28", "data": "photos", "init": "w.pt", "ect": 0.1, "clean": True, "train": TRAIN}


@contextmanager
def accepted_or_refused() -> Iterator[None]:
    """Only a RarefyError of one line may leave it, and soon."""
    began = time.process_time()
    try:
        yield
    except RarefyError as error:
        text = " ".join(str(error).split())  # as the command line prints it
        assert text and len(text) < 5_000
    assert time.process_time() - began < SLOWEST_S


@given(st.text(max_size=200) | st.text("[]={}\"'.,#\n a1", max_size=200))
@BOUNDED
def test_any_text_as_a_manifest(text: str) -> None:
    with accepted_or_refused():
        parse_manifest(text, "m.toml")


@given(changed([MANIFEST, SAME_NUMBER, IN_TOTAL, FILLED, OWN]))
@BOUNDED
def test_manifests(content: Mapping[str, Any]) -> None:
    with accepted_or_refused():
        parse_manifest(to_toml(content), "/no/such/folder/m.toml")


@given(changed([MANIFEST, OWN]), changed([RUN_MODEL], with_null=True))
@BOUNDED
def test_a_runs_own_manifest(content: Mapping[str, Any], model: Any) -> None:
    with accepted_or_refused():
        parse_unread_manifest(to_toml(content), "/out/manifest.toml", RunModel(None))
    with accepted_or_refused():
        run = read_run_model(json.dumps(model).encode("utf-8", "surrogatepass"), "model.json")
        parse_unread_manifest(to_toml(content), "/out/manifest.toml", run)


@given(st.binary(max_size=100))
@BOUNDED
def test_any_bytes_as_model_json(data: bytes) -> None:
    with accepted_or_refused():
        read_run_model(data, "model.json")


@given(changed(CONFIGS, with_null=True))
@BOUNDED
def test_config_json(tmp_path_factory: pytest.TempPathFactory, content: Any) -> None:
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_bytes(json.dumps(content).encode("utf-8", "surrogatepass"))
    with accepted_or_refused():
        model = read_model_folder(folder)
        with torch.device("meta"):
            build_network(model.unet, "unet")
    with accepted_or_refused():
        load_manifest(write_manifest(folder / "rare.toml", "."))


READERS: dict[str, tuple[Callable[[Path], object], list[Any]]] = {
    "gates": (lambda path: load_gates(str(path)), [MANIFEST]),
    "project": (load_project, [PROJECT]),
    "network": (lambda path: load_project(path).model(("a", "b")), [PROJECT]),
    "diffusion": (lambda path: load_recipe(path, "diffusion"), [RECIPE]),
    "classifier": (lambda path: load_recipe(path, "classifier"), [RECIPE]),
}


@pytest.mark.parametrize("name", READERS)
def test_toml_files(name: str, tmp_path: Path) -> None:
    read, valid = READERS[name]
    path = tmp_path / "file.toml"

    @given(changed(valid))
    @BOUNDED
    def any_change(content: Mapping[str, Any]) -> None:
        path.write_text(to_toml(content))
        with accepted_or_refused():
            read(path)

    any_change()


DEEP = 100_000
LONG = "9" * 10_000
TEXTS = {
    "nested lists": f"name = {'[' * DEEP}",
    "nested tables": f"name = {'{a = ' * DEEP}",
    "dotted keys": f"{'.'.join('a' * 5_000)} = 1",
    "dotted table": f"[classes.{'.'.join('a' * 5_000)}]\nx = 1",
    "long number": f"seed = {LONG}",
    "long hexadecimal": f"seed = 0x{LONG}",
    "no float": f'[[guidance]]\nterm = "entropy"\nscale = [[0, 0x{LONG}]]',
    "long text": f'name = "{"x" * 10**6}"',
    "long key": f"{'x' * 10**6} = 1",
    "many keys": "\n".join(f"k{number} = 1" for number in range(20_000)),
    "many terms": '[[guidance]]\nterm = "x"\n' * 5_000,
    "long steps": f'[sampler]\nsteps = "{LONG}"',
    "long sections": f'[sampler]\nsteps = "{"9," * 50_000}9"',
    "null byte": '[model]\npath = "a\\u0000b"',
    "no such user": '[model]\npath = "~no-such-user-here/x"',
}


@pytest.mark.parametrize("what", TEXTS)
def test_extreme_texts(what: str, tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    model = "" if "[model]" in TEXTS[what] else '\n[model]\nname = "fashion-mnist-28"'
    path.write_text(f"{TEXTS[what]}{model}\n")
    for read in (load_manifest, names_preset, load_project, lambda path: load_gates(str(path))):
        with accepted_or_refused():
            read(path)


@pytest.mark.parametrize("data", [b"\xff\xfe", b"\x00", b"", b"\xef\xbb\xbfname = 1"])
def test_files_that_are_no_text(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_bytes(data)
    for read in (load_manifest, names_preset, load_project, lambda path: load_gates(str(path))):
        with accepted_or_refused():
            read(path)


@pytest.mark.parametrize(
    "data",
    [
        b"[" * DEEP,
        b'{"a":' * DEEP,
        b'{"format": ' + b"9" * 10_000 + b"}",
        b"\xff",
        b"",
        b"NaN",
        b'"\\ud800"',
        b"[]",
        b"{}",
    ],
)
def test_json_that_is_extreme(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(data)
    for read in (lambda: read_model_folder(tmp_path), lambda: read_run_model(data, "model.json")):
        with pytest.raises(RarefyError) as caught:
            read()
        assert len(str(caught.value)) < 5_000


@pytest.mark.parametrize(
    "data",
    [
        b"[" * DEEP, b'{"diffusion": ' * 400 + b"1" + b"}" * 400, b'{"diffusion": {"classes": {"cat": Infinity}}}',
        b'{"diffusion": {"classes": {"cat": "%s"}}}' % LONG.encode(), b"[1]", b'"x"', b"\xff",
    ],
)  # fmt: skip
def test_provenance_that_is_extreme(data: bytes, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "provenance.json").write_bytes(data)
    assert set(trained_on(read_model_folder(folder)).values()) <= {0}
    with accepted_or_refused():
        json.dumps(dataclasses.asdict(description := describe(str(folder))))
        assert description.text()


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("total = 8", "total = 1_000_000_000_000", "classes"),
        ("total = 8", "total = 1_000_000_000_000_000", "classes.total"),
        ("total = 8", "per_class = 0xffff_ffff_ffff_ffff_ffff", "classes.per_class"),
        ("total = 8", "counts = { cat = 1_000_000_000_001 }", "classes.counts.cat"),
        ("shard_size = 4", "shard_size = 1_000_000_000", "output.shard_size"),
        ("batch = 2", "batch = 1_000_000_000", "sampler.batch"),
        ("steps = 4", "steps = 1_000_000_000", "sampler.steps"),
        ("steps = 4", 'steps = "999999999999"', "steps"),
        ("steps = 4", 'steps = "logsnr999999999999"', "steps"),
    ],
)
def test_absurd_plans_are_refused_quickly(
    old: str, new: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tmp_path / "model")
    path = write_manifest(tmp_path / "rare.toml", "model")
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    began = time.process_time()
    assert named in refused(["plan", str(path)], capsys)
    assert time.process_time() - began < SLOWEST_S


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_res_blocks", 2**31 - 1), ("model_channels", 2**30), ("channel_mult", [1.0] * 1_000),
        ("channel_mult", [1e9]), ("image_size", 2**31 - 1), ("out_channels", 2**31 - 1), ("num_classes", 2**31 - 1),
    ],
)  # fmt: skip
def test_absurd_networks_are_refused_quickly(key: str, value: object, tmp_path: Path) -> None:
    """A network is built when it is described, which must neither take forever nor fill the memory."""
    content = config_content(MODEL)
    content["unet"] |= {key: value}
    write_model(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps(content))
    began = time.process_time()
    with pytest.raises(RarefyError, match=f"unet.{key}" if key != "out_channels" else "channels"):
        read_model_folder(tmp_path / "model")
    assert time.process_time() - began < SLOWEST_S
