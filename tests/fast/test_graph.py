"""Replays of a recorded network without a GPU: the recording is made up, its memory written over as there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rarefy.fast.gpu.graph import _Replay
from rarefy.models.blocks import _RepeatableAttention, plain_attention


class MadeUp:
    """``y = sin(a x)``, whose activations are the last call's, and used up by a gradient."""

    def __init__(self) -> None:
        self.turn, self.y, self.slope = 0, torch.zeros(3), torch.zeros(3)

    def run(self, x: Tensor, a: Tensor) -> Tensor:
        self.turn += 1
        self.y.copy_((a * x).sin())
        self.slope.copy_(a * (a * x).cos())
        return self.y

    def gradient(self, grad_y: Tensor) -> Tensor:
        self.turn += 1
        found = grad_y * self.slope
        self.slope.fill_(torch.nan)
        return found


def call(x: Tensor, recording: MadeUp, a: Tensor) -> Tensor:
    y: Tensor = _Replay.apply(x, recording, a)  # type: ignore[no-untyped-call]
    return y


def test_gradients_are_right_whatever_call_came_between() -> None:
    recording, a = MadeUp(), torch.tensor([1.0, 2.0, 3.0])
    x, z = (torch.randn(3, requires_grad=True) for _ in range(2))
    y_x, y_z = call(x, recording, a), call(z, recording, a)
    torch.testing.assert_close(y_x, (a * x).sin())
    loss = (y_x * y_z).sum()
    wanted = torch.autograd.grad(((a * x).sin() * (a * z).sin()).sum(), (x, z))
    for _ in range(2):  # again, of the same calls
        found = torch.autograd.grad(loss, (x, z), retain_graph=True)
        for mine, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("before", [False, True])
def test_attentions_gradient_and_the_switch_it_uses(before: bool) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 49, 32, requires_grad=True) for _ in range(3))
    grad = torch.randn(2, 3, 49, 32)
    torch.use_deterministic_algorithms(before)
    try:
        found = torch.autograd.grad(_RepeatableAttention.apply(q, k, v), (q, k, v), grad)  # type: ignore[no-untyped-call]
        assert torch.are_deterministic_algorithms_enabled() is before
    finally:
        torch.use_deterministic_algorithms(False)
    wanted = torch.autograd.grad(plain_attention(q, k, v), (q, k, v), grad)
    for mine, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
