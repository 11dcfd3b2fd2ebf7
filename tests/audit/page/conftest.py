"""Hand-made audits in a folder, as fixtures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from made_up_audit import Result, copy_rows, make_result, strip_rows, write_rows

from rarefy.audit.schema import BOOTSTRAP_PATH, COPIES_PATH, METRICS_PATH, STRIPS_PATH
from rarefy.shards.store import Store

MakeAudit = Callable[..., Store]


@pytest.fixture
def result() -> Result:
    """The content of metrics.json of a small audit; change it at will."""
    return make_result()


@pytest.fixture
def make_audit(tmp_path: Path) -> MakeAudit:
    """make_audit(folder, result, replicates={metric: values}) -> Store of a run with only OUT/audit in it."""

    def make(folder: str, content: Result, replicates: dict[str, list[float]] | None = None) -> Store:
        store = Store(str(tmp_path / folder))
        store.write_bytes(METRICS_PATH, json.dumps(content).encode())
        write_rows(store, STRIPS_PATH, strip_rows())
        write_rows(store, COPIES_PATH, copy_rows())
        rows = [
            {"metric": metric, "replicate": place, "value": value}
            for metric, values in (replicates or {"recall": [0.5] * 200}).items()
            for place, value in enumerate(values)
        ]
        write_rows(store, BOOTSTRAP_PATH, rows)
        return store

    return make
