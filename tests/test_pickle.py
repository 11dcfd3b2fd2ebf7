"""A file of the user's that pickles code is refused in one line wherever rarefy reads it, and the code never runs."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from small_model import refused, write_manifest, write_model, write_real_images
from small_training import SETTINGS, start_small

from rarefy.audit.features.cache import _entry, cached
from rarefy.audit.features.extractors import load_extractor
from rarefy.audit.features.fidelity import FORCE, FORCE_NOT
from rarefy.errors import CheckpointError, DataError, RarefyError
from rarefy.images import load_images
from rarefy.models.checkpoint import read_state
from rarefy.shards.metadata import read_table


class Bomb:
    """Unpickling it leaves a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """The file that says that code has run."""
    return tmp_path / "ran"


def zipped(mark: Path) -> bytes:
    """As torch.save writes it today."""
    file = io.BytesIO()
    torch.save({"weight": torch.zeros(2), "more": Bomb(mark)}, file)
    return file.getvalue()


def legacy(mark: Path) -> bytes:
    """As torch.save wrote it before version 1.6."""
    file = io.BytesIO()
    torch.save({"weight": torch.zeros(2), "more": Bomb(mark)}, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def plain(mark: Path) -> bytes:
    return pickle.dumps({"weight": Bomb(mark)})


pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")
FORMS = pytest.mark.parametrize("form", [zipped, legacy, plain])


def test_the_bomb_works(mark: Path) -> None:
    pickle.loads(plain(mark))
    assert mark.exists()


@FORMS
@pytest.mark.parametrize("name", ["w.pt", "w.bin", "w.ckpt", "w.safetensors"])
def test_weights(form: Callable[[Path], bytes], name: str, mark: Path, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(form(mark))
    with pytest.raises(CheckpointError) as caught:
        read_state(path)
    assert "\n" not in str(caught.value) and not mark.exists()


@FORMS
def test_a_manifests_checkpoint_and_a_model_folders(
    form: Callable[[Path], bytes], mark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "w.pt").write_bytes(form(mark))
    own = '[model]\nname = "adm-imagenet-64"\ncheckpoint = "w.pt"\nclassifier = "w.pt"\n[classes]\ntotal = 1\n'
    (tmp_path / "given.toml").write_text(f'name = "x"\n{own}')
    write_model(tmp_path / "model")
    (tmp_path / "model" / "unet.safetensors").write_bytes(form(mark))
    write_manifest(tmp_path / "folder.toml", "model")
    for name in ("given.toml", "folder.toml"):
        assert "checkpoint" in refused(["bench", str(tmp_path / name), "--batch", "1"], capsys)
        assert not mark.exists()


@FORMS
def test_imported_checkpoints(
    form: Callable[[Path], bytes], mark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(form(mark))
    flags = "--image_size 64 --num_channels 32 --num_res_blocks 1"
    command = ["import", "guided-diffusion", "--unet", str(path), "--flags", flags, "--out", str(tmp_path / "new")]
    assert "checkpoint" in refused(command, capsys)
    assert not mark.exists() and not (tmp_path / "new").exists()


@FORMS
def test_imported_pipelines(
    form: Callable[[Path], bytes], mark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("diffusers")
    folder = tmp_path / "unet"
    folder.mkdir()
    sizes = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": [32], "layers_per_block": 1}
    blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "norm_num_groups": 8}
    (folder / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel", **sizes, **blocks}))
    (folder / "scheduler_config.json").write_text(json.dumps({"_class_name": "DDPMScheduler"}))
    (folder / "diffusion_pytorch_model.bin").write_bytes(form(mark))
    assert "checkpoint" in refused(["import", "diffusers", str(folder), "--out", str(tmp_path / "new")], capsys)
    assert not mark.exists() and not (tmp_path / "new").exists()


@FORMS
@pytest.mark.parametrize("name", ["inception-v3", "vgg16", "clip-vit-b-32"])
def test_extractor_weights(
    form: Callable[[Path], bytes], name: str, mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the environment asks torch to trust every file, and if the file changes after a check."""
    monkeypatch.setenv(FORCE_NOT, "1")
    path = tmp_path / "w.pth"
    path.write_bytes(form(mark))
    with pytest.raises(CheckpointError, match="extractor weights") as caught:
        load_extractor(name, str(path))
    assert "\n" not in str(caught.value) and not mark.exists()


@FORMS
@pytest.mark.parametrize("name", ["inception-v3", "clip-vit-b-32"])
def test_what_was_downloaded_before(
    form: Callable[[Path], bytes], name: str, mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rarefy.audit.features.fidelity import load_module

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    inception = load_module("feature_extractor_inceptionv3").URL_INCEPTION_V3.rpartition("/")[2]
    published = load_module("feature_extractor_clip").MODEL_METADATA["clip-vit-b-32"]["hash"]
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    file = inception if name == "inception-v3" else f"clip-vit-b-32-{published}.pt"
    (folder / file).write_bytes(form(mark))
    with pytest.raises(CheckpointError, match="extractor weights") as caught:
        load_extractor(name)
    assert "\n" not in str(caught.value) and not mark.exists()


def test_the_environment_is_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv(FORCE_NOT, "1")
    monkeypatch.delenv(FORCE, raising=False)
    with pytest.raises(CheckpointError):
        load_extractor("inception-v3", str(tmp_path / "none.pth"))
    assert os.environ[FORCE_NOT] == "1" and FORCE not in os.environ


@FORMS
def test_the_checkpoint_of_a_training(form: Callable[[Path], bytes], mark: Path, tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(form(mark))
    with pytest.raises(CheckpointError, match=r"training: '.*state\.pt' is not the checkpoint of this.*begin again"):
        start_small("diffusion", SETTINGS, tmp_path)
    assert not mark.exists()


def test_initial_weights_of_a_training(mark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_real_images(tmp_path / "data")
    (tmp_path / "w.pt").write_bytes(zipped(mark))
    (tmp_path / "r.toml").write_text('preset = "fashion-mnist-28"\ndata = "data"\ninit = "w.pt"\n[train]\nimages = 8\n')
    command = ["train", "diffusion", str(tmp_path / "r.toml"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    refused(command, capsys)
    assert not mark.exists()


def pickled_array(mark: Path) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([Bomb(mark)], dtype=object), allow_pickle=True)
    return file.getvalue()


def test_the_cache_of_decoded_images(mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_real_images(tmp_path / "data")
    load_images(folder, 8, 1, cache_above_bytes=0)
    (kept,) = (tmp_path / "cache").rglob("images.npy")
    kept.write_bytes(pickled_array(mark))
    with pytest.raises(DataError, match=r"the cache of decoded images .* is damaged"):
        load_images(folder, 8, 1, cache_above_bytes=0)
    assert not mark.exists()


def test_the_cache_of_features(mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    entry = _entry(("a",))
    entry.parent.mkdir(parents=True)
    np.savez(entry, allow_pickle=True, x=np.array([Bomb(mark)], dtype=object))
    assert cached(("a",), lambda: {"x": np.ones(1)})["x"].tolist() == [1.0]
    assert not mark.exists()


def with_extension_type(mark: Path) -> pa.Table:
    """A column of the type that older versions of pyarrow unpickled (CVE-2023-47248)."""
    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(file, "PNG")
    code = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": plain(mark)}
    schema = pa.schema([pa.field("image", pa.binary(), metadata=code), pa.field("label", pa.int64(), metadata=code)])
    return pa.table({"image": [file.getvalue()] * 4, "label": [0, 1, 0, 1]}, schema=schema)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_tables(kind: str, mark: Path, tmp_path: Path) -> None:
    table, folder = with_extension_type(mark), tmp_path / "data"
    folder.mkdir()
    if kind == "parquet":
        pq.write_table(table, folder / "train.parquet")
    else:
        path = str(folder / "data-00000-of-00001.arrow")
        with pa.OSFile(path, "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    try:
        load_images(folder, 8, 1)
    except RarefyError as error:
        assert "\n" not in str(error)
    assert not mark.exists()


def test_metadata_of_a_run(mark: Path, tmp_path: Path) -> None:
    pq.write_table(with_extension_type(mark), tmp_path / "rare-000000.parquet")
    with pytest.raises(RarefyError):
        read_table(tmp_path / "rare-000000.parquet")
    assert not mark.exists()


def test_a_script_next_to_a_data_set_is_no_loading_script(mark: Path, tmp_path: Path) -> None:
    folder = write_real_images(tmp_path / "data")
    (folder / "data.py").write_text(f"open({str(mark)!r}, 'w')")
    assert len(load_images(folder, 8, 1)) == 32
    assert not mark.exists()
