"""The folded extractor against the plain network, the door to torch-fidelity, and the cache."""

import hashlib
import subprocess
import sys
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rarefy.audit.features.cache import array_digest, cache_folder, cached
from rarefy.audit.features.dinov2 import Block, DinoV2
from rarefy.audit.features.extractors import cache_key, extract_outputs, load_extractor, load_plain_efficientnet
from rarefy.audit.features.fidelity import load_module
from rarefy.errors import CheckpointError, DataError, DeviceError, ManifestError


def images(count: int, channels: int, side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, channels, side, side), dtype=np.uint8)


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 64), (3, 96)])
def test_folded_network_agrees_with_the_plain_one(channels: int, side: int) -> None:
    pixels = images(5, channels, side)
    plain, _ = load_plain_efficientnet()
    x = torch.from_numpy(pixels).float().expand(-1, 3, -1, -1)
    x = F.interpolate(x, size=(64, 64), mode="bilinear", align_corners=False, antialias=True)
    with torch.inference_mode():
        expected = plain.extract_features((x - 127) / 128).mean((2, 3)).numpy()  # type: ignore[operator]  # untyped package
    found = extract_outputs(pixels, load_extractor(), "cpu", batch=2)
    assert found.shape == (5, 1280)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 1e-4
    assert np.abs(expected).max() > 1


@pytest.mark.parametrize("side", [32, 45, 64])
def test_native_extractor_keeps_the_images_size(side: int) -> None:
    pixels, extractor = images(3, 3, side), load_extractor("efficientnet-lite0-native")
    plain, _ = load_plain_efficientnet(None)
    with torch.inference_mode():
        x = (torch.from_numpy(pixels).float() - 127) / 128
        expected = plain.extract_features(x).mean((2, 3)).numpy()  # type: ignore[operator]  # untyped package
    assert np.abs(extract_outputs(pixels, extractor) - expected).max() < 1e-4
    assert cache_key(extractor, pixels) != cache_key(load_extractor(), pixels)
    with pytest.raises(ManifestError, match="not possible for images of 28 px: it needs 32 px"):
        extract_outputs(images(1, 1, 28), extractor)


def test_progress_counts_images() -> None:
    seen: list[tuple[int, int]] = []
    extract_outputs(images(5, 1, 28), load_extractor(), batch=2, step=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_bad_arguments_are_one_line() -> None:
    extractor = load_extractor()
    with pytest.raises(DataError, match="images: 'float32"):
        extract_outputs(np.zeros((1, 3, 8, 8), np.float32), extractor)  # type: ignore[arg-type]  # the mistake tested
    with pytest.raises(DataError, match="uint8"):
        extract_outputs(np.zeros((1, 2, 8, 8), np.uint8), extractor)
    with pytest.raises(DeviceError, match="device: 'gpu0'"):
        extract_outputs(images(1, 1, 8), extractor, "gpu0")
    with pytest.raises(
        ManifestError, match=r"extractor: .vgg. is not one of efficientnet-lite0, efficientnet-lite0-nat"
    ):
        load_extractor("vgg")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("inception-v3", "give a path"),
        ("vgg16", "give a path"),
        ("dinov2-vit-s-14", "give a path or put torch.hub's copy into its cache"),
        ("clip-vit-b-32", "give a path"),
    ],
)
def test_no_network_is_one_line_that_says_what_helps(
    name: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route")

    for function in ("kaiming_normal_", "kaiming_uniform_", "uniform_", "normal_"):  # nobody looks at the values
        monkeypatch.setattr(torch.nn.init, function, lambda tensor, *_, **__: tensor)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "load", refuse)
    with pytest.raises(CheckpointError, match=f"{name}.* cannot be downloaded, {hint} .*no route"):
        load_extractor(name)


def test_dinov2_by_path(tmp_path: Path) -> None:
    path, other = tmp_path / "dinov2_vits14_pretrain.pth", tmp_path / "other.pth"
    torch.manual_seed(0)
    network = DinoV2(384, 12, 6, gated=False)
    torch.save(network.state_dict(), path)
    torch.save({"weight": torch.zeros(3)}, other)
    extractor, pixels = load_extractor("dinov2-vit-s-14", str(path)), images(1, 1, 28)
    assert (extractor.layer, extractor.dim, extractor.logits) == ("dinov2", 384, 0)
    with torch.inference_mode():
        expected = network(torch.from_numpy(pixels).expand(-1, 3, -1, -1))[0].numpy()
    np.testing.assert_allclose(extract_outputs(pixels, extractor), expected, atol=1e-5)
    with pytest.raises(CheckpointError, match=r"other\.pth is not a weights file of dinov2-vit-s-14"):
        load_extractor("dinov2-vit-s-14", str(other))


def test_dinov2s_block_is_torchs_transformer_layer() -> None:
    torch.manual_seed(0)
    own = Block(24, 3, gated=False)
    peer = torch.nn.TransformerEncoderLayer(
        24, 3, 96, 0.0, "gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    )
    names = {"self_attn.in_proj_": "attn.qkv.", "self_attn.out_proj": "attn.proj", "linear1": "mlp.fc1"}
    names["linear2"] = "mlp.fc2"
    state = own.state_dict()
    for old, new in names.items():
        state = {key.replace(new, old): value for key, value in state.items()}
    peer.load_state_dict({key: value for key, value in state.items() if "gamma" not in key})
    x = torch.randn(2, 5, 24)
    torch.testing.assert_close(own(x), peer(x))


def test_dinov2_resizes_the_place_of_each_patch() -> None:
    network = DinoV2(8, 0, 1, gated=True)
    with torch.no_grad():
        network.pos_embed[:, 1:, 0] = torch.arange(37.0).repeat(37)  # the column
    columns = network._patch_places(16)[0, :, 0].detach().unflatten(0, (16, 16))
    assert columns.shape == (16, 16)
    torch.testing.assert_close(columns[0], columns[9])
    # Columns are 37 / 16.1 apart, as the authors take 0.1 more than the 16 patches for the scale.
    steps = torch.diff(columns[0][2:14])
    assert float(steps.mean()) == pytest.approx(37 / 16.1, abs=0.01)  # 37 / 16 is 0.014 more
    assert steps.numpy() == pytest.approx(37 / 16.1, abs=0.1)  # bicubic weights do not keep a line straight


def test_a_registered_extractor_is_found_by_name() -> None:
    base = load_module("feature_extractor_base").FeatureExtractorBase

    class Corners(base):  # type: ignore[misc,valid-type]  # untyped package
        def __init__(self, name: str, layers: list[str], **_: object) -> None:
            super().__init__(name, layers)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("corner",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "corner"

        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor]:
            return (pixels[:, :, 0, 0].float(),)

    load_module("registry").register_feature_extractor("corners", Corners)
    extractor = load_extractor("corners")
    pixels = images(3, 3, 8)
    assert (extractor.layer, extractor.dim, extractor.logits) == ("corner", 3, 0)
    np.testing.assert_array_equal(extract_outputs(pixels, extractor), pixels[:, :, 0, 0])


@pytest.mark.parametrize("content", [None, b"", b"not weights"])
def test_a_file_that_is_no_inception(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "inception.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"inception\.pth is not a weights file of inception-v3-compat") as caught:
        load_extractor("inception-v3", str(path))
    assert "\n" not in str(caught.value)


def test_inception_refuses_other_weights_and_pickled_code(tmp_path: Path) -> None:
    other, code = tmp_path / "other.pth", tmp_path / "code.pth"
    torch.save({"weight": torch.zeros(3)}, other)
    torch.save({"call": subprocess.Popen}, code)
    for path in (other, code):
        with pytest.raises(CheckpointError, match="is not a weights file of inception-v3-compat"):
            load_extractor("inception-v3", str(path))


def test_inception_by_path_is_torch_fidelitys_pool_3(tmp_path: Path) -> None:
    # The published weights are in no package: the network's own initial values in their file format stand in.
    blank, path = blank_inception(tmp_path), tmp_path / "inception.pth"
    torch.save(blank.state_dict(), path)
    extractor = load_extractor("inception-v3", str(path))
    pixels = images(2, 1, 28)
    with torch.inference_mode():
        expected, logits = (part.numpy() for part in blank(torch.from_numpy(pixels).expand(-1, 3, -1, -1)))
    outputs = extract_outputs(pixels, extractor, batch=1)
    assert (extractor.layer, extractor.dim, extractor.logits) == ("pool_3", 2048, 1008)
    np.testing.assert_allclose(outputs, np.concatenate([expected, logits], axis=1), atol=1e-4)


def blank_inception(folder: Path) -> torch.nn.Module:
    base = load_module("feature_extractor_inceptionv3").FeatureExtractorInceptionV3

    class Blank(base):  # type: ignore[misc,valid-type]  # untyped package
        def load_state_dict(self, *arguments: object) -> None:
            """Keep the initial values."""

    torch.save({}, folder / "empty.pth")
    network: torch.nn.Module = Blank(
        "blank", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(folder / "empty.pth")
    )
    return network


def test_torch_fidelity_imports_in_a_fresh_process() -> None:
    code = (
        "from rarefy.audit.features.fidelity import load_module; m = load_module('metric_prc');"
        "import torchvision; print(m.KEY_METRIC_RECALL)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "recall\n"), done.stderr


def test_cache_keeps_reuses_and_survives_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls: list[int] = []

    def compute() -> dict[str, np.ndarray]:
        calls.append(1)
        return {"a": np.arange(3.0)}

    for _ in range(2):
        assert cached(("x", "y"), compute)["a"].tolist() == [0.0, 1.0, 2.0]
    assert len(calls) == 1
    cached(("xy",), compute)
    assert len(calls) == 2
    entries = list(cache_folder().iterdir())
    assert cache_folder() == tmp_path / "rarefy" / "audit"
    assert len(entries) == 2
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:100])
    assert cached(("x", "y"), compute)["a"].tolist() == [0.0, 1.0, 2.0]
    assert len(calls) == 3


def test_cache_that_cannot_be_written_only_costs_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocker = tmp_path / "file"
    blocker.write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocker))
    assert cached(("x",), lambda: {"a": np.ones(2)})["a"].tolist() == [1.0, 1.0]


def test_digest_knows_type_and_shape() -> None:
    zeros = np.zeros((2, 3), np.uint8)
    others = [np.zeros((3, 2), np.uint8), np.zeros((2, 3), np.int8), np.ones((2, 3), np.uint8)]
    digests = {array_digest(array) for array in [zeros, zeros.copy(), *others]}
    assert len(digests) == 4


class Held(torch.nn.Module):
    """Parameters under the names of a state dict, in a form that TorchScript takes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_clip_by_path_takes_the_published_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # CLIP is published as TorchScript in half precision; a network of one small layer stands in.
    module = load_module("feature_extractor_clip")
    torch.manual_seed(0)
    visual = module.CLIPVisual(8, 64, 1, 64, 32)
    root = Held()
    for name, value in {**visual.state_dict(), "text_projection": torch.zeros(3, 8)}.items():
        *folders, last = name.split(".")
        inner: torch.nn.Module = root
        for folder in folders:
            if folder not in dict(inner.named_children()):
                inner.add_module(folder, Held())
            inner = inner.get_submodule(folder)
        inner.register_buffer(last, torch.randn(value.shape).half())
    path = tmp_path / "clip.pt"
    torch.jit.script(root).save(str(path))
    with pytest.raises(CheckpointError, match="is not the published weights of clip-vit-b-32"):
        load_extractor("clip-vit-b-32", str(path))
    published = {**module.MODEL_METADATA["clip-vit-b-32"], "hash": hashlib.sha256(path.read_bytes()).hexdigest()}
    monkeypatch.setitem(module.MODEL_METADATA, "clip-vit-b-32", published)
    extractor = load_extractor("clip-vit-b-32", str(path))
    assert (extractor.layer, extractor.dim, extractor.logits) == ("clip", 8, 0)
    found = extract_outputs(images(3, 1, 28), extractor)
    assert found.std(axis=0).min() > 0
    np.testing.assert_allclose(found[:1], extract_outputs(images(3, 1, 28)[:1], extractor), rtol=1e-4)
