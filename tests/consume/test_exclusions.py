from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from planted_run import make_planted, write_planted_audit

from rarefy.audit.current import read_current
from rarefy.audit.inputs.dataset import read_run
from rarefy.audit.page.figures import notes
from rarefy.consume.exclusions import read_exclusions, write_exclusions
from rarefy.consume.rows import read_rows
from rarefy.errors import DataError
from rarefy.shards.store import Store
from rarefy.stages import seal_run, verify_run

KEYS = ["00000300002", "00000000001"]


def test_a_list_is_read_as_it_was_written_and_goes_away_without_keys(own: Path) -> None:
    store = Store(str(own))
    assert read_exclusions(store) == frozenset()
    write_exclusions(store, KEYS)
    assert (own / "excluded.txt").read_text() == "00000000001\n00000300002\n"
    assert read_exclusions(store) == frozenset(KEYS)
    write_exclusions(store, [])
    assert not (own / "excluded.txt").exists() and read_exclusions(store) == frozenset()


def test_comments_and_blank_lines_are_ignored(own: Path) -> None:
    (own / "excluded.txt").write_bytes(b"# not these\r\n\r\n  00000300002  \r\n\t\r\n00000300002\r\n#00000000001\n")
    assert read_exclusions(Store(str(own))) == frozenset(KEYS[:1])


@pytest.mark.parametrize("line", ["rare-000003", "3", "00000300002.png", "0000030000२", "00000300002 # blurred"])
def test_a_line_that_is_no_key_is_named(own: Path, line: str) -> None:
    (own / "excluded.txt").write_text(f"# not these\n00000300002\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_exclusions(Store(str(own)))
    assert f"{own}/excluded.txt line 3: {line!r} is not a sample key, such as 00000200017" in str(caught.value)


def test_bytes_that_are_no_text_are_named(own: Path) -> None:
    (own / "excluded.txt").write_bytes(b"\xff\xfe0\n")
    with pytest.raises(DataError, match=r"line 1: '\\\\xff\\\\xfe0' is not a sample key"):
        read_exclusions(Store(str(own)))


def test_a_malformed_key_is_not_written(own: Path) -> None:
    store = Store(str(own))
    write_exclusions(store, KEYS)
    with pytest.raises(DataError, match="excluded: 'x' is not a sample key"):
        write_exclusions(store, ["00000000004", "x"])
    assert read_exclusions(store) == frozenset(KEYS)


def test_a_selected_set_and_object_storage_have_lists_of_their_own() -> None:
    store = Store(f"memory://exclusions-{uuid.uuid4().hex}")
    more = '[select]\nfrom = 2\nby = "confidence"\non_class = false\ninside = false\n'
    make_planted(store, {0: 4}, 3, more)
    write_exclusions(store, KEYS)
    assert store.exists("selected/excluded.txt") and not store.exists("excluded.txt")
    assert read_exclusions(store) == frozenset(KEYS)


def test_rows_leave_out_what_is_excluded_unless_asked(own: Path) -> None:
    store = Store(str(own))
    every = read_rows(store)["key"].tolist()
    write_exclusions(store, KEYS)
    assert set(KEYS) < set(every)
    assert read_rows(store)["key"].tolist() == [key for key in every if key not in KEYS]
    assert read_rows(store, excluded=True)["key"].tolist() == every


def test_a_key_that_the_set_does_not_have_is_refused(own: Path) -> None:
    (own / "excluded.txt").write_text("00000000001\n00000900001\n")
    with pytest.raises(DataError, match="line 2: '00000900001' is not a key of this data set; delete the line"):
        read_rows(Store(str(own)))


def test_verify_and_seal_accept_a_list(own: Path) -> None:
    store = Store(str(own))
    write_exclusions(store, KEYS)
    before = (own / "index.json").read_bytes()
    assert verify_run(store) == {}
    seal_run(store)
    assert (own / "index.json").read_bytes() == before and read_exclusions(store) == frozenset(KEYS)


def test_the_audit_says_that_it_describes_the_whole_set(own: Path) -> None:
    store = Store(str(own))
    write_planted_audit(store, KEYS)
    assert not [note for note in notes(read_current(store)) if "exclusion list" in note]
    write_exclusions(store, KEYS)
    (note,) = [note for note in notes(read_current(store)) if "exclusion list" in note]
    assert note.startswith("2 of ") and note.endswith("The audit describes the whole set, these included.")
    assert read_run(store, 5).excluded == 2
