"""Manifests: what they mean, what changes their digest, and what is refused."""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path

import pytest

from benchmarks.quality.methods import final_sets
from rarefy.diffusion.schedule import make_schedule
from rarefy.diffusion.settings import SamplerSettings
from rarefy.errors import ManifestError
from rarefy.guidance.terms import PredictedRealImage
from rarefy.manifest import Manifest, load_manifest, parse_manifest
from rarefy.selection import Select

REPO = Path(__file__).parents[2]
BASE = """
name = "base"
seed = 3
[model]
preset = "fashion-mnist-28"
[sampler]
method = "ancestral"
steps = 25
batch = 8
[[guidance]]
term = "low-confidence"
scale = 1.0
tau = 0.5
[classes]
per_class = 4
[accept]
confidence = { max = 0.9 }
[output]
shard_size = 10
"""


def parse(text: str) -> Manifest:
    return parse_manifest(text, "test.toml")


def test_reads_every_field() -> None:
    manifest = parse(BASE)
    assert (manifest.name, manifest.seed, manifest.settings.steps, manifest.batch) == ("base", 3, "25", 8)
    assert manifest.counts == dict.fromkeys(range(10), 4)
    assert manifest.total == 40
    assert [term.name for term in manifest.terms] == ["low-confidence"]
    assert manifest.accept is not None
    assert manifest.accept.confidence.hold(0.9)
    assert not manifest.accept.confidence.hold(0.91)
    assert manifest.text == BASE


@pytest.mark.parametrize(
    ("classes", "counts"),
    [
        ("total = 12", {0: 2, 1: 2, **dict.fromkeys(range(2, 10), 1)}),
        ('total = 5\nids = ["bag", 1]', {8: 3, 1: 2}),
        ('per_class = 3\nids = ["7"]', {7: 3}),
        ('counts = { "0" = 1, "sneaker" = 5, "coat" = 0 }', {0: 1, 7: 5}),
    ],
)
def test_counts_by_each_way(classes: str, counts: dict[int, int]) -> None:
    assert parse(BASE.replace("per_class = 4", classes)).counts == counts


@pytest.mark.parametrize(
    ("keys", "settings"),
    [
        ("", SamplerSettings("dpm-solver++", "logsnr50", 1.0)),
        ("steps = 20", SamplerSettings("dpm-solver++", "logsnr20", 1.0)),
        ('steps = "20"\neta = 0', SamplerSettings("dpm-solver++", "20", 0.0)),
        ('method = "ddim"', SamplerSettings("ddim", "logsnr50", 0.0)),
        ('method = "ancestral"', SamplerSettings("ancestral", "250", 0.0)),
    ],
)
def test_defaults_of_each_method(keys: str, settings: SamplerSettings) -> None:
    """A number means the method's own spacing; a string states the spacing."""
    assert parse(BASE.replace('method = "ancestral"\nsteps = 25', keys)).settings == settings


def test_sampler_keys_reach_the_chain() -> None:
    plain = parse(BASE)
    assert plain.settings == SamplerSettings("ancestral", "25", 0.0, 1)
    keys = 'method = "dpm-solver++"\neta = 1\nclassifier_every = 4\nsteps = "logsnr15"'
    chain = parse(BASE.replace('method = "ancestral"\nsteps = 25', keys)).settings.chain(plain.preset, plain.terms)
    assert (chain.method, chain.eta, chain.classifier_every) == ("dpm-solver++", 1.0, 4)
    assert len(chain.schedule) == 15 and chain.terms == plain.terms


def test_digest_does_not_depend_on_how_it_is_written() -> None:
    lines = BASE.strip().splitlines()
    reordered = "\n".join([*lines[8:], "# a comment", *lines[2:8]])
    top = "\n".join(lines[:2])
    other = top + "\n" + reordered.replace("steps = 25", 'steps = "25"').replace("per_class = 4", "total = 40")
    assert parse(other).digest == parse(BASE).digest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('name = "base"', 'name = "other"'),
        ("seed = 3", "seed = 4"),
        ("steps = 25", "steps = 26"),
        ("batch = 8", "batch = 9"),
        ("batch = 8", 'batch = 8\nprecision = "fast"'),
        ('method = "ancestral"', 'method = "ddim"'),
        ('method = "ancestral"\n', ""),
        ("batch = 8", "batch = 8\nclassifier_every = 2"),
        ("batch = 8", "batch = 8\nstart = 950"),
        ("steps = 25", 'steps = "logsnr25"'),
        ("tau = 0.5", "tau = 0.6"),
        ("tau = 0.5", "tau = 0.5\nwindow = [0, 500]"),
        ("tau = 0.5", "tau_quantiles = [0.2, 0.8]"),
        ('term = "low-confidence"\nscale = 1.0\ntau = 0.5', 'term = "classifier"\nscale = 1.0'),
        ("per_class = 4", "per_class = 5"),
        ("max = 0.9", "max = 0.8"),
        ("confidence = { max = 0.9 }", "confidence = { max = 0.9 }\non_class = true"),
        ("shard_size = 10", "shard_size = 11"),
        ("shard_size = 10", 'shard_size = 10\nprefix = "tail"'),
        ("[output]", "[select]\nfrom = 2\n[output]"),
    ],
)
def test_digest_changes_with_whatever_changes_a_file(old: str, new: str) -> None:
    assert old in BASE
    assert parse(BASE.replace(old, new)).digest != parse(BASE).digest


def test_select() -> None:
    manifest = parse(BASE.replace("[output]", "[select]\nfrom = 3\n[output]"))
    assert manifest.select == Select(3, by="rarity", on_class=True, inside=True, exhausted="error")
    assert manifest.counts == dict.fromkeys(range(10), 4) and manifest.pool == dict.fromkeys(range(10), 12)
    assert parse(BASE).pool == parse(BASE).counts
    texts = [
        "from = 4",
        'from = 3\nby = "avgknn"',
        "from = 3\non_class = false",
        "from = 3\ninside = false",
        'from = 3\nexhausted = "keep"',
    ]
    others = {parse(BASE.replace("[output]", f"[select]\n{text}\n[output]")).digest for text in texts}
    assert len(others | {manifest.digest}) == len(texts) + 1


def test_later_fields_of_a_term_do_not_change_old_digests() -> None:
    """The content that older versions hashed, by hand. Otherwise their runs could not be resumed."""
    manifest = parse(BASE)
    interval = {"": "Bounds", "min": -math.inf, "max": math.inf}
    content = {
        "": "Manifest", "format": 1, "name": "base", "seed": 3, "model": ["fashion-mnist-28", "", ""],
        "settings": {"": "SamplerSettings", "method": "ancestral", "steps": "25", "eta": 0.0, "classifier_every": 1},
        "precision": "exact", "batch": 8, "counts": {str(c): 4 for c in range(10)}, "shard_size": 10, "prefix": "rare",
        "terms": [{"": "LowConfidence", "window": None, "scale": 1.0, "tau": 0.5}],
        "accept": {"": "Accept", "confidence": interval | {"max": 0.9}, "entropy": interval, "on_class": False,
                   "max_candidates": 8, "exhausted": "error"},
        "digest": "", "text": "",
    }  # fmt: skip
    assert manifest.digest == hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def test_name_is_the_new_spelling_of_preset() -> None:
    assert parse(BASE.replace("preset =", "name =")).digest == parse(BASE).digest


def test_digest_holds_a_plug_ins_path_however_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPO / "examples"))
    (tmp_path / "other_term.py").write_text((REPO / "examples" / "boundary_term.py").read_text())
    info = tmp_path / "boundary-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: boundary\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[rarefy.terms]\nboundary = boundary_term:Boundary\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def digest(name: str, margin: float = 0.5) -> str:
        text = BASE.replace('"low-confidence"', f'"{name}"').replace("tau = 0.5", f"margin = {margin}")
        return parse_manifest(text, "test.toml", allow_plugins=True).digest

    assert digest("boundary_term:Boundary") == digest("boundary")
    assert digest("boundary_term:Boundary") != digest("other_term:Boundary")
    assert digest("boundary") != digest("boundary", 0.6)


def test_steps_that_a_term_skips_are_no_steps_of_the_chain() -> None:
    manifest = parse(
        BASE.replace('"low-confidence"', '"boost-and-skip"').replace("scale = 1.0\ntau = 0.5", "start = 500")
    )
    whole, chain = (manifest.settings.chain(manifest.preset, terms) for terms in ((), manifest.terms))
    assert len(whole.schedule) == 25
    assert chain.schedule.timesteps.tolist() == [t for t in whole.schedule.timesteps.tolist() if t <= 500]


def test_a_weights_file_counts_by_its_hash_if_given_else_by_its_path() -> None:
    def digest(model: str) -> str:
        return parse(BASE.replace("[sampler]", f"{model}\n[sampler]")).digest

    hashed = f'checkpoint_sha256 = "{"a" * 64}"'
    assert digest(f'checkpoint = "x.pt"\n{hashed}') == digest(f'checkpoint = "y.pt"\n{hashed}')
    assert digest('checkpoint = "x.pt"') != digest('checkpoint = "y.pt"')
    assert digest(hashed) != digest(hashed.replace("aaa", "bbb"))


def test_relative_weights_start_at_the_manifest(tmp_path: Path) -> None:
    path = tmp_path / "manifest.toml"
    path.write_text(BASE.replace("[sampler]", 'checkpoint = "w/x.pt"\n[sampler]'))
    assert load_manifest(path).model.checkpoint == str(tmp_path / "w/x.pt")


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("seed = 3", "sead = 3", ["'sead'", "seed"]),
        ("batch = 8", "bach = 8", ["'sampler.bach'", "batch"]),
        ("[output]", "[outputs]", ["'outputs'", "output"]),
        ("max = 0.9", "mox = 0.9", ["accept.confidence.mox", "max"]),
        ("tau = 0.5", "tow = 0.5", ["guidance[0].tow", "tau"]),
        ("per_class = 4", "per_class = -4", ["classes.per_class", "-4", "from 0"]),
        ("per_class = 4", "per_class = 0", ["classes.per_class", "0", "at least one"]),
        ("per_class = 4", "per_class = 4\ntotal = 4", ["per_class", "total", "exactly one"]),
        ("per_class = 4", 'counts = { "0" = -1 }', ["classes.counts.0", "-1"]),
        ("per_class = 4", 'counts = { "10" = 1 }', ["'10'", "0 to 9"]),
        ("per_class = 4", 'counts = { "sneeker" = 1 }', ["'sneeker'", "sneaker"]),
        ("per_class = 4", 'counts = { "7" = 1, "sneaker" = 1 }', ["7", "once"]),
        ("per_class = 4", "per_class = 4\nids = [3, 11]", ["classes.ids", "11", "0 to 9"]),
        ("per_class = 4", "total = 99_999_999_999", ["99999999999", "1000000 shards"]),
        ("steps = 25", "steps = 1001", ["1001", "1000"]),
        ("steps = 25", "steps = 0", ["'0'"]),
        ('method = "ancestral"\nsteps = 25', "steps = 0", ["sampler.steps", "0", "from 1 to 1000"]),
        ("steps = 25", "steps = 2.5", ["sampler.steps", "2.5"]),
        ("batch = 8", 'batch = "8"', ["sampler.batch", "'8'", "integer"]),
        ('method = "ancestral"', 'method = "euler"', ["euler", "ancestral"]),
        ("batch = 8", 'batch = 8\nprecision = "half"', ["sampler.precision", "half", "exact"]),
        ("batch = 8", "batch = 8\neta = nan", ["sampler.eta", "nan"]),
        ("batch = 8", "batch = 8\neta = 0.5", ["sampler.eta", "0.5", "ancestral"]),
        ("batch = 8", "batch = 8\nclassifier_every = 0", ["sampler.classifier_every", "0", "from 1"]),
        ("batch = 8", "batch = 8\nstart = 1000", ["sampler.start", "1000", "from 1 to 999"]),
        ("batch = 8", "batch = 8\nclassifier_every = 1.5", ["sampler.classifier_every", "1.5", "integer"]),
        ("batch = 8", "batch = 8\nclassifyer_every = 2", ["sampler.classifyer_every", "classifier_every"]),
        ("steps = 25", 'steps = "logsnr2.5"', ["'logsnr2.5'", '"logsnrN"']),
        ("steps = 25", 'steps = "logsnr999"', ["'logsnr999'", "996 steps"]),
        ("fashion-mnist-28", "fashion-mnist-29", ["model.preset", "fashion-mnist-29"]),
        ('preset = "fashion-mnist-28"', "", ["model", "exactly one of path, name, preset"]),
        ('preset = "fashion-mnist-28"', 'preset = ""', ["model.preset", "non-empty"]),
        ('preset = "fashion-mnist-28"', 'preset = "fashion-mnist-28"\nname = "x"', ["name", "preset", "exactly one"]),
        ('preset = "fashion-mnist-28"', 'name = "fashion-mnist-29"', ["model.name", "fashion-mnist-29"]),
        ('preset = "fashion-mnist-28"', 'path = "nowhere"', ["nowhere", "there is no such folder"]),
        ("seed = 3", "seed = true", ["seed", "True"]),
        ('name = "base"', 'name = "No Spaces"', ["name", "No Spaces"]),
        ("max = 0.9", "min = 0.5, max = 0.2", ["accept.confidence.min", "0.5", "0.2"]),
        ("max = 0.9", "max = 1.5", ["accept.confidence.max", "1.5"]),
        ("shard_size = 10", "shard_size = 100_001", ["output.shard_size", "100001", "100000"]),
        ("shard_size = 10", 'prefix = "a.b"', ["prefix", "a.b"]),
        ('term = "low-confidence"', 'term = "magic"', ["guidance[0].term", "magic", "classifier"]),
        ('term = "low-confidence"', 'term = "no_module:Term"', ["guidance[0].term", "no_module:Term", "--allow"]),
        ("[[guidance]]", "[guidance]", ["guidance", "[[guidance]]"]),
        ("seed = 3", "seed = ", ["test.toml", "not TOML"]),
        ("[output]", "[select]\n[output]", ["select.from", "missing", "from 2 to 1000"]),
        ("[output]", "[select]\nfrom = 1\n[output]", ["select.from", "1", "from 2 to 1000"]),
        ("[output]", '[select]\nfrom = 2\nby = "rare"\n[output]', ["select.by", "'rare'", "rarity, avgknn"]),
        ("[output]", "[select]\nfrom = 2\ninside = 1\n[output]", ["select.inside", "1", "true or false"]),
        ("[output]", "[select]\nfrom = 2\nonclass = true\n[output]", ["'select.onclass'", "on_class"]),
    ],
)
def test_refuses_in_one_line_naming_field_value_and_what_is_allowed(old: str, new: str, named: list[str]) -> None:
    assert old in BASE
    with pytest.raises(ManifestError) as caught:
        parse(BASE.replace(old, new, 1))
    message = str(caught.value)
    assert "\n" not in message
    for part in named:
        assert part in message


def test_the_demo_and_the_default_schedule_are_the_experiments() -> None:
    chosen = load_manifest(REPO / "manifests/demo.toml").terms
    assert chosen == next(final_sets(["low-density"], [0], 20)).manifest.terms
    assert chosen[1] == PredictedRealImage()


def test_the_rare_manifests_act_at_the_same_noise_levels() -> None:
    def levels(name: str) -> list[float]:
        manifest = load_manifest(REPO / "manifests" / f"{name}.toml")
        abar = make_schedule(manifest.preset.schedule, manifest.preset.diffusion_steps).alphas_cumprod
        confidence, gamma = manifest.terms
        assert isinstance(gamma, PredictedRealImage) and isinstance(gamma.gamma, tuple) and confidence.window
        return [float(abar[int(t)]) for t in (*confidence.window, *(t for t, _ in gamma.gamma))]

    assert levels("demo") == levels("imagenet64-rare")
    assert levels("demo") == pytest.approx(levels("imagenet256-rare"), abs=2e-3)


@pytest.mark.parametrize(
    ("rule", "named"),
    [
        ("", "select.by: 'rarity' is not possible with a model folder that has no real images"),
        ('by = "entropy"', "select.inside: True is not possible with a model folder that has no real images"),
        ('by = "entropy"\ninside = false', None),
    ],
)
def test_what_select_needs_of_a_model(rule: str, named: str | None) -> None:
    text = f'name = "a"\n[model]\npreset = "adm-imagenet-64"\n[classes]\ntotal = 1000\n[select]\nfrom = 2\n{rule}'
    if named is None:
        assert parse(text).select is not None
    else:
        with pytest.raises(ManifestError, match=re.escape(named)):
            parse(text)


DIGESTS = {
    "adm-g": "e8e4238daaa354a7bd2825674048922bc3e4ff1537538bd66d9c07388dec492e",
    "demo": "7f19598bcccadcd9b10a0b2a9703c02b2ad178ecfaa3d2ed7282641d790a6fb0",
    "imagenet256-rare": "01d1a8a36b3e9dafb8c4d3bcfbb48c20d923ce7364d8e0134ea64018b5afd0f2",
    "imagenet64-rare": "8a87285f765f05421aa813727ec2e9eb41e058f173838091291f52d7f9071337",
    "long-tail": "b4721cb622a1ef1e363b0a1b6a555db9ad384f152b82aa55fbf414ba8ef2f471",
    "plain": "2522d46c8810cdea25b4a0b39fcad6187990c71a2fc8e4955ae84c720370b79d",
    "quality-quick": "93572397cb1445d11f4cdf3cc8a23c035362cb6b515d3968b75e1ede8f60f11f",
    "quality": "4d3e3b9a8842040f8be40a565d8365c0c050fb31fc0872fee6c251bdef53c654",
    "select": "dc2b3304329d5d4701ab7d28e992f85b2ddd7936c7dbe9c034c2b34255d00265",
    "smoke": "b1ba2eb90b2f1beccacc81c48cd94d33b8b604c2539fc46fa7d4125b3f9fdf31",
}


@pytest.mark.parametrize("name", DIGESTS)
def test_digests_stay(name: str) -> None:
    """A run in progress can only be resumed if its manifest keeps its digest."""
    assert load_manifest(REPO / "manifests" / f"{name}.toml").digest == DIGESTS[name]


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_refuses_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "m.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ManifestError, match=r"m\.toml"):
        load_manifest(path)


@pytest.mark.parametrize(
    "path",
    sorted([*(REPO / "manifests").glob("*.toml"), *(REPO / "examples").glob("*.toml")]),
    ids=lambda path: path.stem,
)
def test_ready_manifests_load(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPO / "examples"))
    assert load_manifest(path, allow_plugins=path.stem == "boundary").total > 0
