"""Networks under torch.compile and as recordings, compared with the same networks run eagerly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from kernel_cases import error
from torch import Tensor, nn

from rarefy import fast
from rarefy.device import has_compiler
from rarefy.execution import prepare
from rarefy.fast import compiling
from rarefy.models.adm import Classifier
from rarefy.models.config import NetworkConfig

CPU = torch.device("cpu")
CONFIG = NetworkConfig(
    image_size=8, in_channels=1, model_channels=32, out_channels=5, num_res_blocks=1, attention_resolutions=(),
    channel_mult=(1,), num_head_channels=32,
)  # fmt: skip


@pytest.fixture(autouse=True)
def reset() -> Iterator[None]:
    yield
    torch.compiler.reset()


def network() -> Classifier:
    torch.manual_seed(0)
    made = Classifier(CONFIG)
    for parameter in made.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return made.eval().requires_grad_(False)


def images(batch: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return x, torch.full((batch,), 500.0)


def gradient(model: Classifier, batch: int = 3) -> Tensor:
    x, t = images(batch)
    log_probs = model(x.requires_grad_(), t).log_softmax(dim=-1)
    return torch.autograd.grad(log_probs[:, 2].sum(), x)[0]


@pytest.mark.skipif(not has_compiler(CPU), reason="needs a C++ compiler")
@pytest.mark.slow
def test_a_compiled_classifier_gives_the_eager_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced as a whole, and run by torch's operations: generating code would take over a minute."""
    calls = []
    compile = torch.compile

    def counted(eager: Any, mode: str, **options: Any) -> Any:
        function = compile(eager, backend="aot_eager", fullgraph=True, **options)
        return lambda *arguments: calls.append(len(arguments[0])) or function(*arguments)  # type: ignore[func-returns-value]

    monkeypatch.setattr(compiling.torch, "compile", counted)
    model = prepare(network(), CPU, compile="off", batch=3)
    expected, smaller = gradient(model), gradient(model, 2)
    with torch.no_grad():
        logits = model(*images(3))
    assert not calls
    prepare(model, CPU, compile="full", batch=3)
    assert error(gradient(model), expected) < 1e-4
    assert torch.equal(gradient(model, 2), smaller)  # another batch size stays eager
    with torch.no_grad():
        assert torch.equal(model(*images(3)), logits)  # so does scoring, which needs no gradient
    assert calls == [3]
    prepare(model, CPU, compile="off", batch=3)
    assert torch.equal(gradient(model), expected) and calls == [3]


def test_networks_are_recorded_for_a_gpu_and_a_batch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU and the recording are fakes."""
    monkeypatch.setattr(fast, "recorded", lambda network, batch: lambda *_: batch)
    monkeypatch.setattr(nn.Module, "to", lambda self, device: self)
    model, gpu = network(), torch.device("cuda")
    assert fast.prepare(model, gpu, "exact", "auto", 3)(*images(3)) == 3
    assert fast.prepare(model, gpu, "exact", "auto", 0)(*images(3)).shape == (3, 5)
    assert fast.prepare(model, gpu, "exact", "off", 3)(*images(3)).shape == (3, 5)


@pytest.mark.parametrize("compile", ["off", "full"])
def test_no_kernel_is_built_unless_needed(compile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast.native, "available", lambda: pytest.fail("builds"))
    prepare(network(), CPU, compile=compile)
