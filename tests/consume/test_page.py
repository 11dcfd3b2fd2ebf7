"""docs/CONSUME.md's snippet for plain webdataset, under two ranks, with more processes than shards."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs" / "CONSUME.md"


def test_plain_webdataset_gives_every_image_once(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (snippet,) = (text for text in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "wds." in text)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "demo").symlink_to(out)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    seen = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        names: dict[str, Any] = {}
        exec("from rarefy.consume.images import to_tensor\n" + snippet, names)
        seen.append(torch.cat([images for images, _ in names["batches"]]))
    assert [len(images) for images in seen] == [20, 20]
    every = torch.cat(seen)
    assert every.shape == (40, 1, 28, 28) and len(every.unique(dim=0)) == 40
