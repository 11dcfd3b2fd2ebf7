"""Names of classes: how those of the data are matched with those of a model. The order of classes never decides."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rarefy.errors import DataError

SHOWN = 12  # names of a long list that a message shows
MAX_DIGITS = 9
SEPARATORS = re.compile(r"[\s/_\-]+")
WORDNET_ID = re.compile(r"n\d{8}(?!\d)", re.IGNORECASE)


@dataclass(frozen=True)
class ClassNames:
    """The classes of a model, by id. wordnet_ids: one per class (``n01440764``), or none."""

    names: tuple[str, ...]
    wordnet_ids: tuple[str, ...] = ()


def is_printable(name: str) -> bool:
    """Whether a name can be shown in one line: valid Unicode without control characters."""
    return name.isprintable() or not {"Cc", "Cs"} & {unicodedata.category(character) for character in name}


def natural_order(name: str) -> tuple[list[str | int], str]:
    """Sorting key that puts 2 before 10 and ignores case."""
    parts = re.split(r"(\d+)", name.casefold())
    return [int(part) if part.isdecimal() else part for part in parts], name


def fold(name: str) -> str | int:
    """A name without case, spaces, ``/``, ``_`` and ``-``; the value of a number, so that ``007`` equals ``7``."""
    text = unicodedata.normalize("NFKC", name).strip()
    if text.isdecimal() and len(text) <= MAX_DIGITS:
        return int(text)
    return SEPARATORS.sub("", text.casefold())


def check_distinct(names: Iterable[str]) -> None:
    """Raise DataError if two names of a data set are spellings of one class."""
    first: dict[str | int, str] = {}
    for name in names:
        other = first.setdefault(fold(name), name)
        if other != name:
            raise DataError(
                f"data: the classes {other!r} and {name!r} have equal names: case, spaces, '/', '_', '-' and leading "
                "zeros do not count; rename one of them, or make them one class"
            )


def match_classes(data_names: Sequence[str], model_names: Sequence[str], wordnet_ids: Sequence[str] = ()) -> list[int]:
    """The model's class id for each class of the data.

    A name matches a whole name of the model or one of its synonyms, which are separated by commas ("tench, Tinca
    tinca"); a WordNet id, alone or as the beginning of a name, matches that id. A number matches the class of that
    number or, if none of the model's names is a number, is itself the class id.
    Raises DataError with both lists if a class matches none or several, or if two classes match the same one.
    """
    known = _spellings(model_names, wordnet_ids)
    matches = [_candidates(name, known) for name in data_names]
    unknown = [name for name, found in zip(data_names, matches, strict=True) if not found]
    ambiguous = [name for name, found in zip(data_names, matches, strict=True) if len(found) > 1]
    if unknown:
        raise _refusal(f"{listed(unknown)} {_are(unknown)} not in the model", data_names, model_names)
    if ambiguous:
        raise _refusal(f"{listed(ambiguous)} could be several of the model's classes", data_names, model_names)
    ids = [min(found) for found in matches]
    owners = defaultdict(list)
    for name, class_id in zip(data_names, ids, strict=True):
        owners[class_id].append(name)
    for class_id, names in owners.items():
        if len(names) > 1:
            message = f"{listed(names)} are all the model's {model_names[class_id]!r}; make them one class"
            raise _refusal(message, data_names, model_names)
    return ids


def listed(names: Iterable[str], shown: int = SHOWN) -> str:
    """Names separated by commas; of a long list the first ones and how many more there are."""
    names = list(names)
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return ", ".join(repr(name) for name in names[:shown]) + more


def _spellings(model_names: Sequence[str], wordnet_ids: Sequence[str]) -> list[dict[str | int, set[int]]]:
    """Class ids by folded spelling: whole names and WordNet ids first, then synonyms, then numbers as ids."""
    whole: dict[str | int, set[int]] = defaultdict(set)
    synonyms: dict[str | int, set[int]] = defaultdict(set)
    for names in (model_names, wordnet_ids):
        for class_id, name in enumerate(names):
            whole[fold(name)].add(class_id)
    for class_id, name in enumerate(model_names):
        for synonym in name.split(","):
            synonyms[fold(synonym)].add(class_id)
    numbered = any(isinstance(fold(name), int) for name in model_names)
    ids: dict[str | int, set[int]] = {} if numbered else {number: {number} for number in range(len(model_names))}
    return [whole, synonyms, ids]


def _candidates(name: str, known: list[dict[str | int, set[int]]]) -> set[int]:
    folded = [fold(name)]
    if wordnet := WORDNET_ID.match(name):
        folded.append(fold(wordnet.group()))
    for spellings in known:
        for spelling in folded:
            if found := spellings.get(spelling):
                return found
    parts = [fold(part) for part in name.split(",")] if "," in name else []
    return {class_id for spellings in known[:2] for part in parts for class_id in spellings.get(part, ())}


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _refusal(problem: str, data_names: Sequence[str], model_names: Sequence[str]) -> DataError:
    ours, theirs = (f"{listed(names)} ({len(names):,} in all)" for names in (data_names, model_names))
    return DataError(f"data: classes are matched by name; {problem}. The data has {ours}; the model has {theirs}")
