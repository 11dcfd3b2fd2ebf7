"""Names of an imported model's classes, in the order of its class ids."""

from __future__ import annotations

from pathlib import Path

from rarefy.errors import ManifestError, bad, near_path
from rarefy.torchvision_operators import import_module

IMAGENET = "imagenet"
_FIELD = "class-names"


def read_class_names(source: str | None) -> tuple[str, ...]:
    """Names from a text file with one per line, or ``imagenet`` for those of its 1,000 classes; none for None.

    Raises ManifestError for a file that cannot be read, an empty line, or a name that is there twice.
    """
    if source is None:
        return ()
    if source == IMAGENET:
        return _imagenet()
    try:
        lines = Path(source).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ManifestError(
            bad(_FIELD, source, f"{IMAGENET} or a readable text file: {reason}{near_path(source)}")
        ) from None
    names = tuple(line.strip() for line in lines)
    if not names or not all(names):
        line = names.index("") + 1 if names else 1
        raise ManifestError(bad(_FIELD, source, f"a file with one name per line: line {line} is empty"))
    seen: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        first = seen.setdefault(name.casefold(), number)
        if first != number:
            raise ManifestError(bad(_FIELD, source, f"without duplicates: {name!r} is in lines {first} and {number}"))
    return names


def _imagenet() -> tuple[str, ...]:
    """torchvision's names of ImageNet's classes; a name that an earlier class has is followed by the id."""
    weights = import_module("torchvision.models").ResNet18_Weights.IMAGENET1K_V1
    taken: set[str] = set()
    names = []
    for class_id, name in enumerate(weights.meta["categories"]):
        names.append(f"{name} ({class_id})" if name.casefold() in taken else name)
        taken.add(name.casefold())
    return tuple(names)
