"""Networks as CUDA graphs: all kernels of a call are recorded once and then launched together.

The time of a small network on a GPU is spent on launching its thousand kernels from Python, which a replay avoids. The
kernels are those of the eager call, so the results are the same to the bit.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rarefy.fast.gradient import first_order
from rarefy.models.adm import ADM, Classifier

WARM_UP = 2  # eager calls before the recording, since some kernels are built or chosen at first use


def recorded(network: ADM, batch: int) -> Callable[..., Tensor]:
    """The forward pass of a frozen network on a GPU, recorded for ``batch`` float32 images; other calls stay eager.

    A classifier is recorded with its gradient and replayed for calls that need it, a U-Net for calls that need none.
    Calls in training mode or under autocast, which would use other kernels, stay eager too.
    """
    eager: Callable[..., Tensor] = network.forward
    recording = _Recording(network, eager, batch)

    def forward(x: Tensor, *rest: Tensor | None) -> Tensor:
        arguments = [value for value in rest if value is not None]
        if network.training or torch.is_autocast_enabled("cuda") or not recording.fits(x, arguments):
            return eager(x, *rest)
        y: Tensor = _Replay.apply(x, recording, *arguments)  # type: ignore[no-untyped-call]
        return y

    return forward


class _Recording:
    """A network's kernels and their memory. turn: number of the call whose activations the memory holds."""

    def __init__(self, network: ADM, eager: Callable[..., Tensor], batch: int) -> None:
        config, device = network.config, next(network.parameters()).device
        self.turn = 0
        self.backward: torch.cuda.CUDAGraph | None = None
        gradient = isinstance(network, Classifier)
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.device(device), torch.cuda.stream(stream), torch.set_grad_enabled(gradient):
            shape = (batch, config.in_channels, config.image_size, config.image_size)
            self.x = torch.zeros(shape, device=device, requires_grad=gradient)
            self.rest = [torch.zeros(batch, device=device)]
            if config.num_classes is not None:
                self.rest.append(torch.zeros(batch, device=device, dtype=torch.int64))
            with warnings.catch_warnings():
                # A warning from the thread that computes gradients, before its first kernel.
                warnings.filterwarnings("ignore", message="Attempting to run cuBLAS")
                for _ in range(WARM_UP):
                    y = eager(self.x, *self.rest)
                    if gradient:
                        torch.autograd.grad(y, self.x, torch.ones_like(y))
            self.forward = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.forward, stream=stream):
                self.y = eager(self.x, *self.rest)
            if gradient:
                self.grad_y, self.backward = torch.zeros_like(self.y), torch.cuda.CUDAGraph()
                with torch.cuda.graph(self.backward, pool=self.forward.pool(), stream=stream):
                    (self.grad_x,) = torch.autograd.grad(self.y, self.x, self.grad_y)
        torch.cuda.current_stream(device).wait_stream(stream)

    def fits(self, x: Tensor, rest: Sequence[Tensor]) -> bool:
        """Whether a call has the recorded shapes and types."""
        same = x.shape == self.x.shape and x.dtype == self.x.dtype and x.requires_grad == self.x.requires_grad
        return same and len(rest) == len(self.rest)

    def run(self, *arguments: Tensor) -> Tensor:
        """The network's result, in memory that the next call overwrites."""
        self.turn += 1
        for place, value in zip((self.x.detach(), *self.rest), arguments, strict=True):
            place.copy_(value)
        self.forward.replay()
        return self.y.detach()

    def gradient(self, grad_y: Tensor) -> Tensor:
        """The gradient with respect to x of the last :meth:`run`; its activations are lost."""
        assert self.backward is not None
        self.turn += 1
        self.grad_y.copy_(grad_y)
        self.backward.replay()
        return self.grad_x


class _Replay(torch.autograd.Function):
    """One call. Its gradient runs the network again if another call came in between."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, recording: _Recording, *rest: Tensor) -> Tensor:
        y = recording.run(x, *rest).clone()
        ctx.recording, ctx.turn = recording, recording.turn
        ctx.save_for_backward(x, *rest)
        return y

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        recording, arguments = ctx.recording, ctx.saved_tensors
        if recording.turn != ctx.turn:
            recording.run(*arguments)
        return recording.gradient(grads[0]).clone(), None, *(None for _ in arguments[1:])
