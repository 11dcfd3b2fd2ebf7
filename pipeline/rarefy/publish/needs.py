"""The Hub's library, which is an extra."""

from __future__ import annotations

from types import ModuleType

from rarefy.errors import OutputError


def hub_library() -> ModuleType:
    """``huggingface_hub`` with the parts of it that are used. Raises OutputError if it is not installed."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError:
        raise OutputError("rarefy push needs huggingface_hub: pip install 'rarefy[hub]'") from None
    return huggingface_hub
