"""Importing packages that import torchvision, where its build does not fit torch's."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch

_NMS_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
# A torch.library.Library drops its schemas when it is garbage-collected, so the one made below stays referenced.
_kept_schemas: list[torch.library.Library] = []


def import_module(name: str) -> ModuleType:
    """Import a module; declare torchvision's missing operators if the import fails on them.

    A CUDA build of torchvision next to a CPU build of torch cannot load its compiled operators, and its import fails
    on the missing schema of ``nms``. The operators are never called here, so declaring their schemas is enough.
    """
    try:
        return importlib.import_module(name)
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error) or _kept_schemas:
            raise
    library = torch.library.Library("torchvision", "DEF")
    _kept_schemas.append(library)
    for operator in ("nms", "qnms"):
        library.define(operator + _NMS_SCHEMA)
    return importlib.import_module(name)
