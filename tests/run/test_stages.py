"""``rarefy run`` mends what is damaged, a bounded number of times. Shards are synthetic; the audit is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.synthetic import commit_synthetic, synthetic_manifest, write_shards
from rarefy.audit import audit
from rarefy.audit.audit import AuditOptions
from rarefy.audit.page import report
from rarefy.errors import OutputError, ShardError
from rarefy.generate import driver
from rarefy.generate.driver import GenerateOptions, GenerateResult
from rarefy.manifest import Manifest, parse_manifest
from rarefy.shards.index import is_sealed
from rarefy.shards.store import Store
from rarefy.stages import REPAIRS, Reports, run, verify_run

TAR = "shards/rare-000002.tar"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write_shards(tmp_path, synthetic_manifest(4), range(4), processes=1)
    return tmp_path


@pytest.fixture(autouse=True)
def without_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "check_before", lambda *arguments: None)
    monkeypatch.setattr(audit, "run_audit", lambda *arguments: {})
    monkeypatch.setattr(report, "write_report", lambda store, gallery: "report")


def generator(monkeypatch: pytest.MonkeyPatch, spoil: bool = False) -> list[int]:
    """Stands in for generate. Returns a list that gets the number of shards that each call makes."""
    made: list[int] = []

    def generate(manifest: Manifest, options: GenerateOptions, *rest: Any) -> GenerateResult:
        store = Store(options.out)
        left = [shard for shard in range(4) if not store.exists(f"state/rare-{shard:06d}.json")]
        for shard in left:
            commit_synthetic(store, manifest, shard, f"again-{len(made)}")
        if spoil:
            store.write_bytes(TAR, b"spoilt")
        made.append(len(left))
        return GenerateResult(4, 4, len(left), len(left), 0, 1.0)

    monkeypatch.setattr(driver, "generate", generate)
    return made


def quiet(*arguments: object) -> None:
    """Progress that nobody reads."""


def stages(command: str) -> Any:
    """Nobody reads these either."""
    return quiet


def test_run_makes_damaged_and_missing_shards_again(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, notices, store = generator(monkeypatch), list[str](), Store(str(out))
    whole = store.read_bytes(TAR)
    store.write_bytes(TAR, b"damaged")
    result = run(
        synthetic_manifest(4),
        GenerateOptions(str(out)),
        AuditOptions(),
        Reports(quiet, stages, notices.append),
    )
    assert made == [0, 1] and result.sealed.samples == 4
    (notice,) = notices
    assert notice.startswith(f"shards: 1 damaged: rare-000002 ({TAR} has 7 bytes, its marker says ")
    assert notice.endswith("1 markers of damaged shards deleted; run generate again (repair 1 of 2)")
    assert store.read_bytes(TAR) == whole and verify_run(store) == {}


def test_a_run_whose_audit_another_driver_repeats_ends_well(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other driver has deleted the results, and writes them and the page again."""
    generator(monkeypatch)

    def fail(store: Store, gallery: bool) -> str:
        raise OutputError("audit/metrics.json is not there")

    monkeypatch.setattr(report, "write_report", fail)
    arguments = synthetic_manifest(4), GenerateOptions(str(out)), AuditOptions()
    notices = list[str]()
    assert run(*arguments, Reports(quiet, stages, notices.append)).report == "audit/report.html"
    assert notices == ["another driver audits this run again and will write its page"]
    Store(str(out)).write_bytes("audit/metrics.json", b"unreadable")
    with pytest.raises(OutputError):
        run(*arguments, Reports(quiet, stages, notices.append))


def test_run_selects_between_seal_and_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four of eight images by their scores, which needs no real images."""
    manifest = parse_manifest(
        synthetic_manifest(4).text + '[select]\nfrom = 2\nby = "confidence"\non_class = false\ninside = false\n',
        "test",
    )
    write_shards(tmp_path, manifest, range(8), processes=1)
    monkeypatch.setattr(driver, "generate", lambda *_: GenerateResult(8, 8, 0, 0, 0, 1.0))
    result = run(manifest, GenerateOptions(str(tmp_path)), AuditOptions(), Reports(quiet, stages, quiet))
    assert result.selected is not None and result.selected.text() == "selected 4 of 8 images"
    assert (result.sealed.samples, result.selected.sealed.samples) == (8, 4)
    assert verify_run(Store(str(tmp_path))) == {}


def test_run_gives_up_on_damage_that_comes_back(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, notices = generator(monkeypatch, spoil=True), list[str]()
    with pytest.raises(ShardError, match="1 damaged: rare-000002"):
        run(
            synthetic_manifest(4),
            GenerateOptions(str(out)),
            AuditOptions(),
            Reports(quiet, stages, notices.append),
        )
    assert made == [0, *[1] * REPAIRS] and len(notices) == REPAIRS
    assert not is_sealed(Store(str(out)))


def test_verify_writes_nothing(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data set may be somebody else's."""

    def refuse(*arguments: object) -> None:
        raise AssertionError(arguments)

    for name in ("create", "write_bytes", "delete", "withdraw", "staged"):
        monkeypatch.setattr(Store, name, refuse)
    assert verify_run(Store(str(out))) == {}
    (out / "state" / "run.json").unlink()
    with pytest.raises(OutputError, match=r"it has no state/run\.json"):
        verify_run(Store(str(out)))
