from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rarefy.errors import ShardError
from rarefy.shards.listing import committed_numbers
from rarefy.shards.marker import Marker, parse_marker, read_committed, read_marker
from rarefy.shards.store import Store

MARKER = Marker(
    name="rare-000007",
    shard=7,
    manifest_digest="d" * 64,
    tar_sha256="a" * 64,
    tar_md5="b" * 32,
    tar_bytes=10_240,
    parquet_sha256="c" * 64,
    parquet_bytes=9000,
    rows=6,
    counts={"0": 4, "11": 2},
    attempt="0123456789abcdef",
    seconds=2.5,
    images_per_second=2.4,
    versions={"torch": "2.11", "zlib": "1.3"},
    created_at="2026-11-27T12:00:00+00:00",
)
JSON = (st.none() | st.text() | st.lists(st.integers() | st.lists(st.none()))).map(lambda v: json.dumps(v).encode())
DATA = MARKER.to_json()
NASTY = (
    None, True, -1, 2**63, 1.5, 1e308, "", "x", "0" * 64, "\u0663", [], {}, {"0": 6}, {"0": None}, {"0": -6, "1": 12},
    {"x": 6}, [[[[[[[[]]]]]]]], "a/b", "2026-11-27", "yesterday",
)  # fmt: skip


def damaged_or_same(data: bytes) -> None:
    try:
        marker = parse_marker(data, "state/x.json")
    except ShardError as error:
        assert str(error).startswith("state/x.json: not ") and "\n" not in str(error) and len(str(error)) < 1000
    else:
        assert marker == MARKER


def test_it_comes_back() -> None:
    assert parse_marker(DATA, "x") == MARKER


def test_every_flipped_bit_is_noticed() -> None:
    for position in range(len(DATA)):
        for bit in range(8):
            flipped = bytearray(DATA)
            flipped[position] ^= 1 << bit
            damaged_or_same(bytes(flipped))


def test_every_truncation_is_noticed() -> None:
    for length in range(len(DATA) - 2):
        with pytest.raises(ShardError):
            parse_marker(DATA[:length], "x")


@pytest.mark.parametrize("value", NASTY)
@pytest.mark.parametrize("name", json.loads(DATA))
def test_every_wrong_value_is_noticed(name: str, value: Any) -> None:
    damaged_or_same(json.dumps(json.loads(DATA) | {name: value}).encode())


@pytest.mark.parametrize("name", Marker.__dataclass_fields__)
@pytest.mark.parametrize("value", NASTY)
def test_types_and_ranges_are_checked_without_the_checksum_too(name: str, value: Any) -> None:
    """Markers of earlier versions have none."""
    table = json.loads(DATA) | {name: value}
    del table["checksum"], table["created_at"]
    try:
        marker = parse_marker(json.dumps(table).encode(), "x")
    except ShardError:
        return
    assert type(value) is type(getattr(MARKER, name)) or name in ("seconds", "images_per_second", "created_at")
    assert json.loads(marker.to_json()) | {"checksum": None} == table | {"checksum": None}


@pytest.mark.parametrize(
    "data",
    [
        b"", b"null", b"[" * 100_000, b'{"a":' * 100_000, b"NaN", DATA.replace(b"2.5", b"NaN"),
        DATA.replace(b"2.5", b"1e999"), DATA.replace(b"10240", b"9" * 5000), DATA.replace(b"0123456", b"\xff\xfe"),
        DATA.replace(b'"counts": {\n  "0": 4,\n  "11": 2\n }', b'"counts": null'),
    ],
)  # fmt: skip
def test_what_json_allows_and_a_marker_does_not(data: bytes) -> None:
    with pytest.raises(ShardError, match=r"^x: not "):
        parse_marker(data, "x")


@given(st.binary(max_size=200) | JSON)
@settings(max_examples=100, deadline=None)
def test_anything_else_is_not_a_marker(data: bytes) -> None:
    with pytest.raises(ShardError, match=r"^x: not "):
        parse_marker(data, "x")


@given(st.dictionaries(st.sampled_from(sorted(json.loads(DATA))), st.none() | st.integers() | st.text() | st.floats()))
@settings(max_examples=100, deadline=None)
def test_other_values_are_noticed(changes: dict[str, object]) -> None:
    damaged_or_same(json.dumps(json.loads(DATA) | changes).encode())


def test_a_marker_of_an_earlier_version_is_read() -> None:
    table = json.loads(DATA)
    del table["checksum"], table["created_at"]
    old = parse_marker(json.dumps(table).encode(), "x")
    assert old == replace(MARKER, created_at=None)
    assert parse_marker(old.to_json(), "x") == old


@pytest.mark.parametrize("changes", [{"shard": 8}, {"rows": 5}, {"name": "rare-7"}])
def test_fields_that_contradict_each_other(changes: dict[str, Any]) -> None:
    with pytest.raises(ShardError, match="disagree"):
        parse_marker(replace(MARKER, **changes).to_json(), "x")


def test_read_committed_wants_this_shard_and_manifest(store: Store) -> None:
    store.write_bytes("state/rare-000007.json", DATA)
    assert read_committed(store, "rare-000007", "d" * 64) == MARKER
    assert read_committed(store, "rare-000007", "e" * 64) is None
    assert read_committed(store, "rare-000008", "d" * 64) is None
    store.write_bytes("state/rare-000008.json", DATA)
    assert read_committed(store, "rare-000008", "d" * 64) is None
    store.write_bytes("state/rare-000007.json", DATA[:99])
    assert read_committed(store, "rare-000007", "d" * 64) is None
    store.write_bytes("state/rare-000009.json/child", b"")
    assert read_marker(store, "rare-000009") is None, "a directory is no marker"


def test_committed_numbers_ignores_every_other_name(store: Store) -> None:
    for name in (
        "rare-000000.json", "rare-123456.json", "rare-1234567.json", "rare-0000008.json", "rare-00009.json",
        "rare-000010.json.tmp", "xrare-000011.json", "rare-000012.tar", "run.json", "other-000013.json",
        "rare-000014xjson", "drivers/rare-000015.json", "rare-\u0660\u0660\u0660\u0660\u0660\u0661.json",
        f".rare-000016.json.{'0' * 32}.tmp", "rare-000017.json/child",
    ):  # fmt: skip
        store.write_bytes(f"state/{name}", b"not read")
    assert committed_numbers(store, "rare") == {0, 123_456, 1_234_567}
    assert committed_numbers(store, "a.e") == set()
    assert committed_numbers(Store(f"{store.root}/absent"), "rare") == set()
