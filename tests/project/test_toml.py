"""What the two files are made of is TOML that means what was given, in lines of at most 120 characters."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rarefy.project.toml import Setting, number, numbers, quote, section, strings

PRINTABLE = st.text(st.characters(exclude_categories=("C", "Z"), include_characters=" "), min_size=1)


@pytest.mark.parametrize("value", [0, 1, 9999, 10_000, 1_300_000, 5e-4, 1e-3, 0.05, 0.5, 0.995, 2.0])
def test_numbers(value: float) -> None:
    assert tomllib.loads(f"x = {number(value)}")["x"] == value


def test_numbers_as_people_write_them() -> None:
    assert [number(value) for value in (1_300_000, 5e-4, 0.001)] == ["1_300_000", "5e-4", "1e-3"]
    assert numbers([1.0, 2.5]) == "[1, 2.5]"


@given(st.lists(PRINTABLE, min_size=1, max_size=60))
def test_strings(names: list[str]) -> None:
    assert tomllib.loads(f"x = {strings(names)}")["x"] == names
    assert tomllib.loads(f"x = {quote(names[0])}")["x"] == names[0]


def test_long_names_are_not_broken() -> None:
    names = ["x" * 150, "two words " * 20, "a-b" * 50]
    assert tomllib.loads(f"x = {strings(names)}")["x"] == names


def test_comments_are_aligned_and_long_ones_stand_above() -> None:
    text = section("[t]", "An introduction.", [Setting("a", "1", "short"), Setting("bcd", "2", "also short")])
    assert text == "# An introduction.\n[t]\na = 1     # short\nbcd = 2   # also short"
    long = section("", "", [Setting("a", "1", "word " * 40)])
    assert all(len(line) <= 120 for line in long.splitlines())
    assert long.splitlines()[-1] == "a = 1"
