"""The Hub's library, which is an extra and is imported when it is needed."""

from __future__ import annotations

from types import ModuleType


def hub_library() -> ModuleType:
    """``huggingface_hub`` with the parts of it that are used."""
    import huggingface_hub
    import huggingface_hub.constants
    import huggingface_hub.errors
    import huggingface_hub.utils

    return huggingface_hub
