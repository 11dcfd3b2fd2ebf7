"""The data set's card: valid for the Hub's own reader, with the audit's results and the model's licence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rarefy.audit.audit import AuditOptions, run_audit
from rarefy.audit.card import SAMPLE_PATH
from rarefy.manifest import Manifest
from rarefy.models.folder import licence
from rarefy.shards.card import AUDIT_BEGIN, AUDIT_END, CardInfo, Contents, render_card, with_audit
from rarefy.shards.store import Store
from rarefy.shards.verify import CARD

CommitRun = Callable[[Store, str], Manifest]
MANIFEST = """
name = "card"
[model]
preset = "fashion-mnist-28"
[classes]
counts = { 0 = 9, 4 = 9 }
"""
INFO = CardInfo('rare: "birds" #1', "mine", 64, 3, ("a | b", "c"), ("eds",), "ancestral, 250 steps")
CONTENTS = Contents({0: 1200, 1: 4}, ("rare-000000", "rare-000002"), 3, ("0" * 64, None))


def test_the_card_is_one_that_the_hub_takes() -> None:
    hub = pytest.importorskip("huggingface_hub")
    card = hub.DatasetCard(with_audit(render_card(INFO, CONTENTS, "d" * 64), "## Audit\n\nvalues: 1\n"))
    assert card.data.license == "unknown"
    assert card.data.pretty_name == INFO.name
    assert card.data.size_categories == ["1K<n<10K"]
    assert card.data.task_categories == ["image-classification"]
    assert card.data.to_dict()["configs"][0]["data_files"] == [{"split": "train", "path": "shards/*.tar"}]
    named = hub.DatasetCard(render_card(CardInfo(**vars(INFO) | {"licence": "cc-by-4.0"}), CONTENTS, "d" * 64))
    assert named.data.license == "cc-by-4.0"
    assert "The model's card names the licence `cc-by-4.0`." in named.text


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("---\nlicense: mit\ntags: []\n---\n# m\n", "mit"),
        ('---\ntags: []\nlicense: "cc-by-4.0"\n---\n', "cc-by-4.0"),
        ("---\nlicense: unknown\n---\n", None),
        ("# no front matter\nlicense: mit\n", None),
        (None, None),
    ],
)
def test_the_licence_is_what_the_models_card_says(tmp_path: Path, text: str | None, found: str | None) -> None:
    if text is not None:
        (tmp_path / "README.md").write_text(text)
    assert licence(tmp_path) == found


def test_the_section_of_the_audit_is_replaced_and_nothing_else() -> None:
    card = render_card(INFO, CONTENTS, "d" * 64)
    first = with_audit(card, "## Audit\n\none\n")
    assert "Not audited yet" not in first
    assert with_audit(first, "## Audit\n\none\n") == first
    assert with_audit(first, None) == card
    old = card.replace(AUDIT_BEGIN, "").replace(AUDIT_END, "")
    assert with_audit(old, "## Audit\n\none\n").endswith(f"one\n{AUDIT_END}\n")
    assert with_audit(old, "x\n").startswith(old.rstrip())


def test_an_audit_puts_its_results_on_the_card(tmp_path: Path, real_folder: Path, commit_run: CommitRun) -> None:
    store = Store(str(tmp_path / "out"))
    commit_run(store, MANIFEST)
    options = AuditOptions(reference=str(real_folder))
    store.write_bytes(CARD, render_card(INFO, CONTENTS, "d" * 64).encode())
    run_audit(store, options, lambda *_: None)
    text = store.read_bytes(CARD).decode()
    assert "Tail recall " in text
    assert f"]({SAMPLE_PATH})" in text
    assert "of 18 images were measured with efficientnet-lite0, k = 3" in text
    assert text.count("## Audit") == 1
    assert store.read_bytes(SAMPLE_PATH).startswith(b"\x89PNG")

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "comparing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_audit(store, options, interrupt)
    assert "Not audited yet" in store.read_bytes(CARD).decode()
    assert not store.exists(SAMPLE_PATH)
