"""Which execution options a device supports, and the switches of the process."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

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


class Own(nn.Module):
    """A network that is not ADM; x is differentiable, t and further arguments are ignored."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        output: Tensor = self.last(self.first(x))
        return output


def own_network() -> tuple[Own, Tensor, Tensor]:
    torch.manual_seed(0)
    return Own().eval().requires_grad_(False), torch.randn(4, 1, 8, 8), torch.zeros(4)


@pytest.mark.parametrize("compile", ["auto", "off"])
def test_own_networks_are_only_moved_in_exact(compile: str) -> None:
    network, x, t = own_network()
    expected, weights = network(x, t), copy.deepcopy(network.state_dict())
    assert prepare(network, CPU, "exact", compile, batch=4) is network
    torch.testing.assert_close(network(x, t), expected, rtol=0, atol=1e-6)
    assert all(torch.equal(weights[name], value) for name, value in network.state_dict().items())
    assert network.first.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("reduced", [False, True])
def test_own_networks_run_under_autocast_in_fast(reduced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "processor", lambda: "flags : amx_bf16" if reduced else "flags : avx2")
    network, x, t = own_network()
    expected = network(x, t)
    prepare(network, CPU, "fast", "auto", batch=4)
    x.requires_grad_()
    output = network(x, t)
    (gradient,) = torch.autograd.grad(output.sum(), x)
    error = (output - expected).abs().max().item()
    assert (1e-4 < error < 0.05) if reduced else error < 1e-6
    assert (output.dtype, gradient.dtype, network.first.weight.dtype) == (torch.float32,) * 3
    prepare(network, CPU, "exact", "auto", batch=4)
    assert (network(x, t) - expected).abs().max().item() < 1e-6


def test_own_networks_are_compiled_for_the_samplers_batch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def fake_compile(forward: Callable[..., Tensor], **options: object) -> Callable[..., Tensor]:
        def compiled(x: Tensor, *rest: Tensor | None) -> Tensor:
            calls.append(len(x))
            return forward(x, *rest)

        return compiled

    monkeypatch.setattr(torch, "compile", fake_compile)
    monkeypatch.setattr(device, "has_compiler", lambda place: True)
    network, x, t = own_network()
    expected = network(x, t)
    prepare(network, CPU, "exact", "full", batch=4)
    torch.testing.assert_close(network(x, t), expected, rtol=0, atol=1e-6)
    network(x[:3], t[:3])
    (gradient,) = torch.autograd.grad(network(x.requires_grad_(), t).sum(), x)
    assert calls == [4, 4] and gradient.abs().sum() > 0


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
