"""Replays of a recorded network without a GPU, with a fake recording whose memory is overwritten as on a GPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from rarefy.fast.attention import _RepeatableAttention, plain_attention
from rarefy.fast.gpu import graph
from rarefy.fast.gpu.graph import _Replay


class Eager(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class FakeRecording:
    """``y = sin(a x)``. The activations are those of the last call, and a gradient destroys them."""

    def __init__(self) -> None:
        self.turn, self.y, self.slope = 0, torch.zeros(3), torch.zeros(3)

    def run(self, x: Tensor, a: Tensor) -> Tensor:
        self.turn += 1
        self.y.copy_((a * x).sin())
        self.slope.copy_(a * (a * x).cos())
        return self.y

    def gradient(self, grad_y: Tensor) -> Tensor:
        self.turn += 1
        value = grad_y * self.slope
        self.slope.fill_(torch.nan)
        return value


def call(x: Tensor, recording: FakeRecording, a: Tensor) -> Tensor:
    y: Tensor = _Replay.apply(x, recording, a)  # type: ignore[no-untyped-call]
    return y


def test_gradients_are_right_whatever_call_came_between() -> None:
    recording, a = FakeRecording(), torch.tensor([1.0, 2.0, 3.0])
    x, z = (torch.randn(3, requires_grad=True) for _ in range(2))
    y_x, y_z = call(x, recording, a), call(z, recording, a)
    torch.testing.assert_close(y_x, (a * x).sin())
    loss = (y_x * y_z).sum()
    expected = torch.autograd.grad(((a * x).sin() * (a * z).sin()).sum(), (x, z))
    for _ in range(2):  # again, of the same calls
        value = torch.autograd.grad(loss, (x, z), retain_graph=True)
        for actual, other in zip(value, expected, strict=True):
            torch.testing.assert_close(actual, other)


def test_training_and_autocast_are_never_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        pytest.fail("replays")

    monkeypatch.setattr(graph, "_Recording", lambda *_: SimpleNamespace(fits=lambda *_: True, run=refuse))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: not network.training)
    network = Eager()
    forward = graph.recorded(network, 3)  # type: ignore[arg-type]
    for mode in (True, False):
        network.train(mode)
        assert torch.equal(forward(torch.ones(3)), torch.full((3,), 2.0))


@pytest.mark.parametrize("before", [False, True])
def test_attentions_gradient_and_the_switch_it_uses(before: bool) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 49, 32, requires_grad=True) for _ in range(3))
    grad = torch.randn(2, 3, 49, 32)
    torch.use_deterministic_algorithms(before)
    try:
        value = torch.autograd.grad(_RepeatableAttention.apply(q, k, v), (q, k, v), grad)  # type: ignore[no-untyped-call]
        assert torch.are_deterministic_algorithms_enabled() is before
    finally:
        torch.use_deterministic_algorithms(False)
    expected = torch.autograd.grad(plain_attention(q, k, v), (q, k, v), grad)
    for actual, other in zip(value, expected, strict=True):
        torch.testing.assert_close(actual, other, rtol=1e-4, atol=1e-5)
