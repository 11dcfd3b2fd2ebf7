"""Terms by name, import path and entry point: the dataclass defines the keys of the manifest."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from rarefy.errors import ManifestError
from rarefy.guidance.base import ScoreTerm
from rarefy.guidance.registry import TERMS, parse_term
from rarefy.guidance.terms import BoostAndSkip, EntropyAscent, LowConfidence, SelfGuided

PLUG_IN = """
from __future__ import annotations
from dataclasses import dataclass
from typing import Literal
from torch import Tensor
from rarefy.guidance.base import Ramp, ScoreTerm, StepState, Term

@dataclass(frozen=True, kw_only=True)
class Pull(ScoreTerm):
    depth: int
    strength: float = 1.0
    side: Literal["left", "right"] = "left"
    label: str | None = None
    weights: tuple[float, ...] = (1.0,)
    gamma: Ramp | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth > 9:
            raise ValueError("depth: more than 9 is too deep")

    def gradient(self, state: StepState) -> Tensor:
        return self.strength * state.x_t

@dataclass(frozen=True, kw_only=True)
class Odd(ScoreTerm):
    table: dict = None

@dataclass(frozen=True, kw_only=True)
class Blind(ScoreTerm):
    value: "Nowhere" = 1

@dataclass(frozen=True, kw_only=True)
class Plain(Term):
    pass

class NoTerm:
    pass

class Undecorated(ScoreTerm):
    pass
"""


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A folder on the path with modules of terms, and a distribution that registers one of them."""
    (tmp_path / "pulling_terms.py").write_text(PLUG_IN)
    (tmp_path / "broken_terms.py").write_text("import no_such_module\n")
    (tmp_path / "garbled_terms.py").write_text("class :\n")
    info = tmp_path / "pulling-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pulling\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[rarefy.terms]\npull = pulling_terms:Pull\nlost = lost_terms:Lost\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in ("pulling_terms", "broken_terms", "garbled_terms"):
        sys.modules.pop(name, None)


def test_built_in_terms_read_their_keys() -> None:
    assert parse_term({"term": "entropy", "scale": [[0, 1], [900, 3]]}, "g") == EntropyAscent(
        scale=((0.0, 1.0), (900.0, 3.0))
    )
    assert parse_term({"term": "boost-and-skip", "gamma": 2, "start": 900}, "g") == BoostAndSkip(gamma=2.0, start=900)
    table = {"term": "self-guided", "scale": 0.2, "every": 2, "level": 0.5, "window": [0, 500]}
    assert parse_term(table, "g") == SelfGuided(scale=0.2, every=2, level=0.5, window=(0.0, 500.0))
    quantiles = parse_term({"term": "low-confidence", "tau_quantiles": [0, 0.5, 1]}, "g")
    assert quantiles == LowConfidence(tau_quantiles=(0.0, 0.5, 1.0))
    assert parse_term({"term": "low-confidence"}, "g") == LowConfidence(tau=0.5)
    assert {kind.name for kind in TERMS.values()} == set(TERMS)


@pytest.mark.parametrize("name", ["pulling_terms:Pull", "pull"])
def test_a_plug_in_is_its_dataclass(name: str, plug_in: Any) -> None:
    table = {"term": name, "depth": 3, "strength": 2, "side": "right", "label": "a", "weights": [1, 2], "gamma": 0.5}
    term: Any = parse_term(table, "g")
    assert isinstance(term, ScoreTerm) and term.name == "pulling_terms:Pull"
    values = term.depth, term.strength, term.side, term.label, term.weights, term.gamma, term.window
    assert values == (3, 2.0, "right", "a", (1.0, 2.0), 0.5, None)
    assert term == parse_term(table | {"term": "pulling_terms:Pull"}, "g")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"term": "pulling_terms:Pull"}, r"g\.depth: None is not an integer"),
        ({"term": "pull", "depth": 1.5}, r"g\.depth: 1\.5 is not an integer"),
        ({"term": "pull", "depth": 10}, r"g\.depth: more than 9 is too deep"),
        ({"term": "pull", "depth": 1, "deep": 2}, r"g\.deep: 2 is not a key of pulling_terms:Pull, which has depth, "),
        ({"term": "pull", "depth": 1, "side": "up"}, r"g\.side: 'up' is not one of left, right"),
        ({"term": "pull", "depth": 1, "label": 1}, r"g\.label: 1 is not a string"),
        ({"term": "pull", "depth": 1, "weights": 1}, r"g\.weights: 1 is not a list of numbers"),
        ({"term": "pull", "depth": 1, "strength": float("nan")}, r"g\.strength: nan is not a number"),
        ({"term": "pulling_terms:Odd", "table": {}}, r"g\.table: \{\} is not of a type that a manifest supports"),
        ({"term": "pulling_terms:Blind"}, r"g\.term: 'pulling_terms:Blind' is not .*Nowhere"),
        ({"term": "pulling_terms:Plain"}, r"g\.term: 'pulling_terms:Plain' is not a term, .* ClassifierTerm, ScoreT"),
        ({"term": "pulling_terms:NoTerm"}, r"g\.term: 'pulling_terms:NoTerm' is not a term, a dataclass"),
        ({"term": "pulling_terms:Undecorated"}, r"is not a term, a dataclass"),
        ({"term": "pulling_terms:Missing"}, r"g\.term: 'pulling_terms:Missing' is not importable here: AttributeErr"),
        ({"term": "no_such_terms:Pull"}, r"g\.term: 'no_such_terms:Pull' is not importable here: ModuleNotFoundError"),
        ({"term": "broken_terms:Pull"}, r"'broken_terms:Pull' is not importable here: .*no_such_module"),
        ({"term": "garbled_terms:Pull"}, r"'garbled_terms:Pull' is not importable here: SyntaxError"),
        ({"term": ":Pull"}, r"g\.term: ':Pull' is not importable here: ValueError"),
        ({"term": "lost"}, r"g\.term: 'lost' is not importable as lost_terms:Lost here: ModuleNotFoundError"),
        (
            {"term": "push"},
            r"'push' is not one of classifier, .*pull \(nearest: pull\), or the import path of a c",
        ),
        ({"term": 3}, r"g\.term: 3 is not one of classifier"),
        ({}, r"g\.term: None is not one of classifier"),
        ({"term": "entropy", "scale": "x"}, r"g\.scale: 'x' is not a number"),
        ({"term": "boost-and-skip", "gamma": 0}, r"g\.gamma: 0\.0 is not above 0"),
        ({"term": "boost-and-skip", "start": -1}, r"g\.start: -1 is not an original time step, at least 0"),
        ({"term": "boost-and-skip", "window": [0, 1]}, r"g\.window: \[0\.0, 1\.0\] is not a key of boost-and-skip"),
        ({"term": "self-guided", "every": 0}, r"g\.every: 0 is not at least 1"),
        ({"term": "self-guided", "level": 1}, r"g\.level: 1\.0 is not at least 0 and below 1"),
        (
            {"term": "low-confidence", "tau": 0.5, "tau_quantiles": [0, 1]},
            r"g\.tau_quantiles: .* allowed together with t",
        ),
        (
            {"term": "low-confidence", "tau_quantiles": [0.5]},
            r"g\.tau_quantiles: \[0\.5\] is not two or more asc",
        ),
        (
            {"term": "low-confidence", "tau_quantiles": [0.5, 0.2]},
            r"g\.tau_quantiles: .* two or more ascending numbers",
        ),
        (
            {"term": "low-confidence", "tau_quantiles": [0.5, 1.2]},
            r"g\.tau_quantiles: .* numbers from 0 to 1",
        ),
        ({"term": "low-confidence", "tau": [[0, 0.5], [9, 1.5]]}, r"g\.tau: .* is not from 0 to 1"),
    ],
)
def test_bad_tables_are_refused_in_one_line(table: dict[str, Any], message: str, plug_in: Any) -> None:
    with pytest.raises(ManifestError, match=message) as caught:
        parse_term(table, "g", allow_plugins=True)
    assert "\n" not in str(caught.value)
