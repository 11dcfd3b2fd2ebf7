"""What runs how on which device, and networks under torch.compile against the same ones eager."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rarefy.cli import main
from rarefy.errors import DeviceError, ManifestError
from rarefy.fast.cpu import native, precision, triton_norm
from rarefy.fast.precision import (
    Capability,
    Execution,
    capability,
    choose,
    has_bfloat16,
    set_precision,
    set_up,
    to_bfloat16,
    to_device,
)
from rarefy.models.adm import Classifier
from rarefy.models.config import NetworkConfig

CPU = Capability("cpu", True, True, True)
GPU = Capability("cuda", True, True, False)
CONFIG = NetworkConfig(
    image_size=8, in_channels=1, model_channels=32, out_channels=5, num_res_blocks=1, attention_resolutions=(),
    channel_mult=(1,), num_head_channels=32,
)  # fmt: skip
FULL = Execution(network_mode="default")
EAGER = Execution()


pytestmark = pytest.mark.usefixtures("switches")


@pytest.mark.parametrize(
    ("found", "precision", "compile", "wanted"),
    [
        (CPU, "exact", "auto", Execution(native=True)),
        (CPU, "fast", "auto", Execution(native=True)),
        (CPU, "fast", "off", EAGER),
        (CPU, "fast", "full", FULL),
        (replace(CPU, native=False), "exact", "auto", EAGER),
        (GPU, "exact", "auto", Execution(triton=True, graphs=True)),
        (GPU, "fast", "auto", Execution(triton=True, graphs=True, tf32=True)),
        (GPU, "fast", "off", Execution(tf32=True)),
        (GPU, "exact", "full", Execution(network_mode="reduce-overhead")),
        (GPU, "fast", "full", Execution(network_mode="reduce-overhead", tf32=True)),
        (replace(GPU, compiler=False), "fast", "auto", Execution(graphs=True, tf32=True)),
    ],
)
def test_choice_by_capability(found: Capability, precision: str, compile: str, wanted: Execution) -> None:
    assert choose(found, precision, compile) == wanted


@pytest.mark.parametrize(
    ("found", "precision", "compile", "message"),
    [
        (replace(GPU, compiler=False), "fast", "full", "compile: 'full' .* Triton"),
        (replace(CPU, compiler=False), "exact", "full", r"compile: 'full' .* needs g\+\+"),
        (replace(GPU, present=False), "exact", "off", "device: 'cuda' .* finds no GPU"),
        (CPU, "exact", "some", "compile: 'some' is not one of auto, off, full"),
    ],
)
def test_what_cannot_be_carried_out(found: Capability, precision: str, compile: str, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        choose(found, precision, compile)


@pytest.mark.parametrize("compile", ["off", "full"])
def test_no_kernel_is_built_that_is_not_asked_for(compile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "available", lambda: pytest.fail("builds"))
    assert not capability(torch.device("cpu"), compile).native


def test_this_processor_is_there() -> None:
    found = capability(torch.device("cpu"), "auto")
    assert (found.device, found.present) == ("cpu", True)


@pytest.mark.parametrize("flags", ["avx2", "avx512_bf16", "amx_bf16", "fp asimd svebf16 i8mm bf16"])
def test_fast_is_bfloat16_where_the_processor_multiplies_it(flags: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_processor", lambda: f"flags : fpu {flags}")
    check_dtypes(torch.device("cpu"), flags != "avx2")


@pytest.mark.parametrize("multiplies", [False, True])
def test_fast_is_bfloat16_where_the_gpu_multiplies_it(multiplies: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU is made up: torch's answer about it is all that is asked for."""
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: multiplies or including_emulation)
    check_dtypes(torch.device("cuda"), multiplies)


def check_dtypes(device: torch.device, multiplies: bool) -> None:
    assert has_bfloat16(device) is multiplies
    wanted = torch.bfloat16 if multiplies else torch.float32
    assert set_precision(Classifier(CONFIG), "fast", device).dtype == wanted
    assert set_precision(Classifier(CONFIG), "exact", device).dtype == torch.float32


def test_an_unknown_precision_is_named() -> None:
    with pytest.raises(ManifestError, match=r"sampler\.precision: 'half' is not one of exact, fast"):
        set_precision(Classifier(CONFIG), "half", torch.device("cpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there() -> None:
    assert not capability(torch.device("cuda"), "auto").present


def test_set_up_reaches_every_switch() -> None:
    set_up([], Execution(native=True, triton=True, tf32=True), 3)
    assert native.takes_norm(torch.zeros(1, 1, 32)) is native.available()
    assert torch.backends.cudnn.allow_tf32
    assert triton_norm._state["on"]
    set_up([], EAGER, 3)
    cudnn = torch.backends.cudnn
    assert (cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic) == (False, False, True)
    assert not triton_norm._state["on"]
    assert not native.takes_norm(torch.zeros(1, 1, 32))


def test_recorded_are_the_networks_that_are_set_up_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is recorded here, where no GPU is: what would be is asked for."""
    monkeypatch.setattr(precision, "recorded", lambda network, batch: lambda *_: batch)
    model = Classifier(CONFIG)
    set_up([model], Execution(graphs=True), 3)
    assert model(*images(3)) == 3
    set_up([model], EAGER, 3)
    assert model(*images(3)).shape == (3, 5)


def network() -> Classifier:
    """A small classifier in bfloat16, eager."""
    torch.manual_seed(0)
    made = Classifier(CONFIG)
    for parameter in made.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    to_bfloat16(made)
    return to_device(made, torch.device("cpu")).eval().requires_grad_(False)


def images(batch: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return x, torch.full((batch,), 500.0)


def logits(model: Classifier) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(*images(3))
    return found


def gradient(model: Classifier, batch: int = 3) -> Tensor:
    x, t = images(batch)
    log_probs = model(x.requires_grad_(), t).log_softmax(dim=-1)
    return torch.autograd.grad(log_probs[:, 2].sum(), x)[0]


@pytest.mark.skipif(not capability(torch.device("cpu"), "auto").compiler, reason="needs a C++ compiler")
@pytest.mark.slow
def test_a_compiled_classifier_gives_the_eager_gradient() -> None:
    model = network()
    wanted, other, scored = gradient(model), gradient(model, 2), logits(model)
    set_up([model], FULL, 3)
    found = gradient(model)
    assert not torch.equal(found, wanted)  # else it ran eager, and the next line says nothing
    # bfloat16 has 8 bits, and compiled code rounds in fewer places.
    assert (found - wanted).norm() / wanted.norm() < 4e-2
    assert torch.equal(gradient(model, 2), other)  # another batch size stays eager
    assert torch.equal(logits(model), scored)  # so does scoring, which wants no gradient
    set_up([model], EAGER, 3)
    assert torch.equal(gradient(model), wanted)


@pytest.mark.parametrize("command", ["run", "generate"])
def test_full_without_a_compiler_is_said_before_anything_starts(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    manifest = Path(__file__).parents[2] / "manifests" / "smoke.toml"
    assert main([command, str(manifest), "--out", str(tmp_path / "out"), "--compile", "full"]) == 2
    captured = capsys.readouterr()
    assert "compile: 'full'" in captured.err and captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
