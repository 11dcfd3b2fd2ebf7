"""Which execution options a device supports, and the switches of the process."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from rarefy import device, execution
from rarefy.cli import main
from rarefy.errors import DeviceError, ManifestError
from rarefy.execution import check_execution, has_bfloat16, prepare, repeatable
from rarefy.models.adm import Classifier
from rarefy.models.config import NetworkConfig

CPU, GPU = torch.device("cpu"), torch.device("cuda")
CONFIG = NetworkConfig(
    image_size=8, in_channels=1, model_channels=32, out_channels=5, num_res_blocks=1, attention_resolutions=(),
    channel_mult=(1,), num_head_channels=32,
)  # fmt: skip


def test_unknown_words_are_named() -> None:
    with pytest.raises(DeviceError, match="compile: 'some' is not one of auto, off, full"):
        check_execution(CPU, "exact", "some")
    with pytest.raises(ManifestError, match=r"sampler\.precision: 'half' is not one of exact, fast"):
        prepare(Classifier(CONFIG), CPU, "half")


def test_a_gpu_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match=r"device: 'cuda' .* finds no GPU"):
        check_execution(GPU, "exact", "off")


def test_torch_compile_needs_a_compiler_and_on_a_gpu_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device, "has_triton", lambda device: False)
    with pytest.raises(DeviceError, match=r"compile: 'full' .* Triton"):
        check_execution(GPU, "fast", "full")
    check_execution(GPU, "fast", "auto")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(DeviceError, match=r"compile: 'full' .* needs g\+\+"):
        check_execution(CPU, "exact", "full")
    check_execution(CPU, "exact", "auto")


@pytest.mark.parametrize("flags", ["avx2", "avx512_bf16", "avx512_bf16 amx_bf16", "fp asimd bf16"])
def test_fast_is_bfloat16_if_the_processor_has_matrix_units(flags: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "processor", lambda: f"flags : fpu {flags}")
    check_dtypes(CPU, "amx_bf16" in flags)


@pytest.mark.parametrize("multiplies", [False, True])
def test_fast_is_bfloat16_if_the_gpu_multiplies_it(multiplies: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU is a fake: only torch's answer about it matters. The network stays on the meta device."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: multiplies or including_emulation)
    check_dtypes(GPU, multiplies)


def check_dtypes(place: torch.device, reduced: bool) -> None:
    assert has_bfloat16(place) is reduced
    with torch.device("meta"):
        fast, exact = Classifier(CONFIG), Classifier(CONFIG)
    assert prepare(fast, place, "fast").dtype == (torch.bfloat16 if reduced else torch.float32)
    assert prepare(exact, place, "exact").dtype == torch.float32


def test_the_process_is_repeatable_within_the_context_and_as_before_after_it() -> None:
    cudnn = torch.backends.cudnn

    def switches() -> tuple[bool, ...]:
        return cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32

    original = switches()
    try:
        for before in ((True, False, True), (False, False, False)):
            cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = before
            for precision in ("exact", "fast"):
                with pytest.raises(ZeroDivisionError), repeatable(precision):
                    assert switches() == (False, True, precision == "fast")
                    raise ZeroDivisionError
                assert switches() == before
            prepare(Classifier(CONFIG), CPU, "fast")
            assert switches() == before
    finally:
        cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = original


def test_without_the_fast_folder_networks_stay_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "_make_fast", None)
    network = Classifier(CONFIG)
    assert type(prepare(network, CPU)) is Classifier
    with pytest.raises(DeviceError, match=r"precision: 'fast' is not possible here: rarefy\.fast is not installed"):
        prepare(network, CPU, "fast")


@pytest.mark.parametrize("command", ["run", "generate"])
def test_full_without_a_compiler_is_refused_before_anything_starts(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    manifest = Path(__file__).parents[1] / "manifests" / "smoke.toml"
    assert main([command, str(manifest), "--out", str(tmp_path / "out"), "--compile", "full"]) == 2
    captured = capsys.readouterr()
    assert "compile: 'full'" in captured.err and captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
