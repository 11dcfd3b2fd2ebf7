"""A mark for gradients by kernels, which autograd cannot differentiate again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import torch

Gradients = TypeVar("Gradients")


def first_order(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """Refuse ``create_graph=True``, under which autograd would take the kernels' results for constants.

    torch's ``once_differentiable`` overlooks second derivatives that also have a path past the kernels.
    """

    @functools.wraps(backward)
    def checked(*arguments: object) -> Gradients:
        if torch.is_grad_enabled():
            raise RuntimeError('create_graph: True is not possible with rarefy\'s kernels; use compile="off" on a CPU')
        return backward(*arguments)

    return checked
