"""What the terminal says about images that [accept] did not accept."""

from __future__ import annotations

import pytest

from rarefy.errors import RarefyError
from rarefy.generate.driver import GenerateResult
from rarefy.shards.listing import count_not_accepted
from rarefy.shards.store import Store


def test_images_that_no_filter_accepted_are_counted(run: Store) -> None:
    """One of six in each shard of the fixture."""
    names = ["rare-000000", "rare-000001", "rare-000002"]
    assert count_not_accepted(run, names) == 3
    run.delete("metadata/rare-000001.parquet")
    with pytest.raises(RarefyError, match=r"rare-000001\.parquet"):
        count_not_accepted(run, names)


def test_the_terminal_shows_how_many() -> None:
    result = GenerateResult(2, 1200, 2, 1200, 0, 3.0)
    assert result.text() == "made 1,200 of 1,200 images and 2 of 2 shards in 3s, 0 retries"
    kept = GenerateResult(2, 1200, 2, 1200, 0, 3.0, not_accepted=17)
    assert kept.text().splitlines()[1] == "[accept]: 17 of 1,200 images did not pass and were kept"
