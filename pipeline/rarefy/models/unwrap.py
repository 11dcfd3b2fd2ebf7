"""Finds a network's weights inside a checkpoint: under wrappers and prefixes, and averaged (EMA) or raw.

Trainers save more than weights, in many forms. None of them is known here by name: what counts is the one place whose
entries are exactly the network's, in names and shapes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from rarefy.errors import CheckpointError

DEPTH = 4  # of nested tables that are searched
_SHOWN = 5
_AVERAGED = re.compile(r"(^|[^a-z])(ema|averaged?|shadow|swa|polyak)([^a-z]|$)", re.IGNORECASE)
_RAW = re.compile(r"online", re.IGNORECASE)
_COUNTERS = {"initted", "step", "steps", "num_updates", "n_averaged", "decay", "epoch", "global_step"}
_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def _as_is(name: str) -> str:
    return name


def _without_dots(name: str) -> str:
    return name.replace(".", "")


def _old_attention(name: str) -> str:
    return re.sub(r"(attentions\.\d+)\.(to_q|to_k|to_v|to_out\.0)\.", lambda m: f"{m[1]}.{_OLD_ATTENTION[m[2]]}.", name)


FORMS: dict[Callable[[str], str], str] = {
    _as_is: "",
    _without_dots: "names without dots",  # latent-diffusion's LitEma
    _old_attention: "diffusers' old names of attention layers",
}


@dataclass(frozen=True)
class Place:
    """Where a file keeps a network's entries.

    keys: of the nested tables; prefix: of the entries' names; names: the network's names and those in the table;
    averaged: whether these are averaged weights; note: how the names are written, if differently.
    """

    keys: tuple[str, ...]
    prefix: str
    names: Mapping[str, str]
    averaged: bool
    note: str = ""

    def table(self, content: Mapping[str, object]) -> Mapping[str, Tensor]:
        """The table of a file's content that has the entries."""
        for key in self.keys:
            inner = content[key]
            assert isinstance(inner, Mapping)
            content = inner
        return content  # type: ignore[return-value] # its entries were checked when the place was found

    def __str__(self) -> str:
        return ".".join([*self.keys, *([self.prefix.rstrip(".")] if self.prefix else [])]) or "the top level"


@dataclass(frozen=True)
class Found:
    """The place that is used, the other places that would fit, and entries that are not used."""

    place: Place
    others: tuple[Place, ...]
    unused: tuple[str, ...]

    def text(self) -> str:
        """What was unwrapped, for people; empty for a plain file."""
        place, parts = self.place, []
        if place.keys or place.prefix:
            kind = "the averaged (EMA) weights" if place.averaged else "the weights"
            parts.append(f"uses {kind} in {str(place)!r}")
        if self.others:
            parts.append(f"not those in {', '.join(repr(str(other)) for other in self.others)}")
        if place.note:
            parts.append(place.note)
        if self.unused:
            parts.append(f"does not use {some(self.unused)}")
        return "; ".join(parts)


def find_weights(content: Mapping[str, object], expected: Mapping[str, Tensor]) -> Found | None:
    """The one place in a file's content whose entries are exactly those of the network; None if there is none.

    Averaged weights win over others. Raises CheckpointError if two places are equally good.
    """
    places = [place for keys, table in _tables(content) for place in _places(keys, table, expected)]
    averaged = [place for place in places if place.averaged]
    best = averaged or places
    if len(best) > 1:
        names = ", ".join(repr(str(place)) for place in best)
        raise CheckpointError(f"has several sets of weights that fit ({names}); save the one to use alone")
    if not best:
        return None
    (place,) = best
    others = tuple(other for other in places if other is not place)
    return Found(place, others, _unused(content, [place, *others]))


def closest(content: Mapping[str, object], expected: Mapping[str, Tensor]) -> tuple[Place, Mapping[str, Tensor]]:
    """The place with the most of the network's names, and all tensors there without their prefix."""
    best, most = (Place((), "", {}, False), content), -1
    for keys, table in _tables(content):
        for prefix in _prefixes(table, expected):
            matches = sum(prefix + name in table for name in expected)
            if matches > most:
                best, most = (Place(keys, prefix, {}, False), table), matches
    place, table = best
    return place, {
        name.removeprefix(place.prefix): value
        for name, value in table.items()
        if isinstance(value, Tensor) and name.startswith(place.prefix)
    }


def some(names: tuple[str, ...] | list[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def is_counter(name: str, value: object) -> bool:
    """Whether an entry is a trainer's counter or decay, a single number with a known name."""
    return name.rsplit(".", 1)[-1] in _COUNTERS and isinstance(value, Tensor) and value.numel() == 1


def _tables(
    content: Mapping[str, object], keys: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Mapping[str, object]]]:
    """All nested tables with text keys, outermost first."""
    yield keys, content
    for key, value in content.items():
        if len(keys) < DEPTH and isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
            yield from _tables(value, (*keys, key))


def _places(keys: tuple[str, ...], table: Mapping[str, object], expected: Mapping[str, Tensor]) -> list[Place]:
    """The places in one table that have all of the network's entries and no others."""
    places = []
    for form, note in FORMS.items():
        if form is not _as_is and all(form(name) == name for name in expected):
            continue
        for prefix in _prefixes(table, [form(name) for name in expected][:1], form is _without_dots):
            names = {name: prefix + form(name) for name in expected}
            if all(_fits(table.get(names[name]), value) for name, value in expected.items()):
                places.append(Place(keys, prefix, names, _is_averaged(keys, prefix, table), note))
    taken = {name for place in places for name in place.names.values()}
    return [place for place in places if not _extra(table, place.prefix, taken)]


def _prefixes(table: Mapping[str, object], anchors: Iterable[str], any_end: bool = False) -> list[str]:
    """What comes before one of the anchors in the table's names: nothing or, unless any_end, something with a dot."""
    found = {name.removesuffix(anchor): None for anchor in anchors for name in table if name.endswith(anchor)}
    return [prefix for prefix in found if not prefix or prefix.endswith(".") or any_end]


def _fits(value: object, like: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == like.shape


def _extra(table: Mapping[str, object], prefix: str, taken: set[str]) -> list[str]:
    """Tensors under the prefix that the network lacks, apart from counters: then the file is of another network."""
    return [
        name
        for name, value in table.items()
        if isinstance(value, Tensor) and name.startswith(prefix) and name not in taken and not is_counter(name, value)
    ]


def _is_averaged(keys: tuple[str, ...], prefix: str, table: Mapping[str, object]) -> bool:
    """Whether the innermost name that says so says that the weights are averaged."""
    for part in reversed([*keys, *prefix.rstrip(".").split(".")]):
        if _RAW.search(part):
            return False
        if _AVERAGED.search(part):
            return True
    return "n_averaged" in table


def _unused(content: Mapping[str, object], places: list[Place]) -> tuple[str, ...]:
    """What is not in any of the places: tables and values of the file, and other prefixes than the network's."""
    names = [name for name in content if not any(name in place.keys[:1] for place in places)]
    names += [name for place in places if place.keys for name in place.table(content)]
    taken = {name for place in places for name in place.names.values()}
    return tuple(dict.fromkeys(name.split(".")[0] for name in names if name not in taken))


_LOOKS_LIKE = (
    (
        "shadow_params",
        "an average of diffusers' EMAModel, whose weights have no names; save the averaged U-Net instead",
    ),
    ("first_stage_model.", "a latent diffusion model; rarefy samples pixels"),
    ("param_groups", "the state of an optimizer; give the file with the weights"),
    ("map_layer0.", "a network of EDM; import it as a model of your own (docs/IMPORT.md)"),
    ("down_blocks.", "a U-Net of diffusers, which rarefy import diffusers reads with its config.json"),
    ("output_blocks.", "a U-Net of guided-diffusion's form; check its flags"),
    ("input_blocks.", "a classifier of guided-diffusion's form; check its flags"),
)


def looks_like(content: Mapping[str, object]) -> str:
    """What a file that does not fit seems to be, from the names of its entries; empty if nothing is known."""
    names = [f"{name}." for _, table in _tables(content) for name in table]
    return next((text for sign, text in _LOOKS_LIKE if any(_has(name, sign) for name in names)), "")


def _has(name: str, sign: str) -> bool:
    return f".{sign.rstrip('.')}." in f".{name}"
