"""The gate before import paths: nothing runs without permission, and a data set is read without any code of others."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from small_model import make_run, refused, write_manifest, write_model, write_real_images

from rarefy.cli import main
from rarefy.errors import ManifestError, OutputError
from rarefy.generate.actor import ShardGenerator
from rarefy.manifest import load_manifest
from rarefy.models.folder import read_model_folder
from rarefy.models.networks import build_network
from rarefy.plugins import GROUP, TERM_GROUP, allowed_by_environment, check_plugin
from rarefy.shards.metadata import read_records
from rarefy.shards.store import Store
from rarefy.stages import seal_run, verify_run

TERM = '[[guidance]]\nterm = "marked_plugin:Pull"\nstrength = 1\n[[guidance]]\nterm = "low-confidence"'
# Importing it leaves a file, so that a test sees it in any process.
PLUGIN = """
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from torch import Tensor, nn
from rarefy.guidance.base import ScoreTerm, StepState
from rarefy.models.adm import Classifier, UNet
from rarefy.models.config_file import read_network

Path(__file__).with_name("imported").touch()

@dataclass(frozen=True, kw_only=True)
class Pull(ScoreTerm):
    name: ClassVar[str] = "pull"
    strength: float
    depth: int = 3

    def gradient(self, state: StepState) -> Tensor:
        return self.strength * state.x_t

def unet(**options) -> nn.Module:
    return UNet(read_network({"kind": "adm"} | options, "unet"))

def classifier(**options) -> nn.Module:
    return Classifier(read_network({"kind": "adm"} | options, "classifier"))
"""


class Plugin:
    """The folder of the module ``marked_plugin``, which is on the path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def imported(self) -> bool:
        """Whether it was imported since the last call."""
        sys.modules.pop("marked_plugin", None)
        mark = self.folder / "imported"
        seen = mark.exists()
        mark.unlink(missing_ok=True)
        return seen

    def install(self, entry_points: str) -> None:
        """Pretend that an installed package has these entry points."""
        info = self.folder / "marked-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: marked\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(entry_points)


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plugin]:
    folder = tmp_path / "plugin"
    folder.mkdir()
    (folder / "marked_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delenv("RAREFY_ALLOW_PLUGINS", raising=False)
    yield Plugin(folder)
    sys.modules.pop("marked_plugin", None)


def own_networks(folder: Path) -> Path:
    """A model folder whose networks are the plug-in's."""
    write_model(folder)
    config = json.loads((folder / "config.json").read_text())
    for role in ("unet", "classifier"):
        options = {key: value for key, value in config[role].items() if key != "kind"}
        sizes = {key: options[key] for key in ("image_size", "in_channels", "out_channels", "num_classes")}
        config[role] = {"kind": f"marked_plugin:{role}", **sizes, "options": options}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


COMMANDS = ["plan {}", "run {} --out {out}", "generate {} --out {out}", "bench {}"]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("what", ["term", "network"])
def test_commands_refuse_a_plug_in_in_one_line(
    command: str, what: str, plugin: Plugin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tmp_path / "model") if what == "term" else own_networks(tmp_path / "model")
    path = write_manifest(tmp_path / "rare.toml", "model", TERM if what == "term" else "")
    words = [word.format(path, out=tmp_path / "out") for word in command.split()]
    named = "guidance[0].term: 'marked_plugin:Pull'" if what == "term" else "unet.kind: 'marked_plugin:unet'"
    message = refused(words, capsys)
    assert f"{named} is not imported without --allow-plugins (or RAREFY_ALLOW_PLUGINS=1)" in message
    assert not plugin.imported() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("way", ["flag", "variable", "terms", "object", "module"])
def test_permission_comes_from_the_user_or_from_an_installed_package(
    way: str, plugin: Plugin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tmp_path / "model")
    words = ["plan", str(write_manifest(tmp_path / "rare.toml", "model", TERM))]
    if way == "flag":
        words.append("--allow-plugins")
    elif way == "variable":
        monkeypatch.setenv("RAREFY_ALLOW_PLUGINS", "1")
    else:
        group = TERM_GROUP if way == "terms" else GROUP
        plugin.install(f"[{group}]\nmine = marked_plugin{'' if way == 'module' else ':Pull'}\n")
    assert main(words) == 0
    assert plugin.imported()


def test_another_object_of_an_installed_package_is_not_permitted(plugin: Plugin) -> None:
    plugin.install(f"[{GROUP}]\nmine = marked_plugin:Push\nother = marked_plugin.sub\n")
    for path in ("marked_plugin:Pull", "marked_plugin.other:Pull", "marked:Pull"):
        with pytest.raises(ManifestError, match="is not imported without --allow-plugins"):
            check_plugin(path, "term", path, allowed=False)
    check_plugin("marked_plugin:Push", "term", "mine", allowed=False)
    check_plugin("marked_plugin.sub:Any", "term", "other", allowed=False)
    assert not plugin.imported()


@pytest.mark.parametrize(("value", "allowed"), [("", False), ("0", False), ("1", True)])
def test_the_variable(value: str, allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAREFY_ALLOW_PLUGINS", value)
    assert allowed_by_environment() is allowed
    monkeypatch.setenv("RAREFY_ALLOW_PLUGINS", "yes")
    with pytest.raises(ManifestError, match=r"RAREFY_ALLOW_PLUGINS: 'yes' is not 1 .* or 0"):
        allowed_by_environment()


def test_actors_have_the_drivers_permission(plugin: Plugin, tmp_path: Path) -> None:
    own_networks(tmp_path / "model")
    path = write_manifest(tmp_path / "rare.toml", "model")
    with pytest.raises(ManifestError, match=r"unet\.kind: 'marked_plugin:unet' is not imported"):
        load_manifest(path)
    allowed = load_manifest(path, allow_plugins=True)
    assert not plugin.imported(), "reading a manifest builds no network"
    ShardGenerator(allowed, str(tmp_path / "out"), "cpu", 1).load()
    assert plugin.imported()


def test_a_network_is_not_built_without_permission(plugin: Plugin, tmp_path: Path) -> None:
    folder = read_model_folder(own_networks(tmp_path / "model"))
    with pytest.raises(ManifestError, match=r"unet\.kind: 'marked_plugin:unet' is not imported"):
        build_network(folder.unet, "unet")
    assert not plugin.imported()


def test_a_model_is_described_without_its_code(
    plugin: Plugin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = own_networks(tmp_path / "model")
    assert main(["models", str(folder)]) == 0
    assert "parameters not counted (that imports its code, see --allow-plugins)" in capsys.readouterr().out
    assert not plugin.imported()
    assert main(["models", str(folder), "--allow-plugins", "--json"]) == 0
    counted = json.loads(capsys.readouterr().out)["networks"][0]["parameters"]
    assert counted == sum(value.numel() for value in load_file(folder / "unet.safetensors").values())


@pytest.fixture
def of_others(plugin: Plugin, tmp_path: Path) -> Path:
    """Somebody's sealed run of a plug-in's term and networks; what it imported is forgotten."""
    own_networks(tmp_path / "model")
    manifest = load_manifest(write_manifest(tmp_path / "rare.toml", "model", TERM), allow_plugins=True)
    make_run(manifest, tmp_path / "out")
    assert plugin.imported()
    return tmp_path / "out"


def test_a_data_set_is_verified_and_sealed_without_its_code(of_others: Path, plugin: Plugin) -> None:
    assert main(["verify", str(of_others)]) == 0
    assert main(["seal", str(of_others)]) == 0
    assert "pull" in (of_others / "README.md").read_text()
    assert not plugin.imported()


@pytest.mark.slow
def test_a_data_set_is_audited_without_its_code(
    of_others: Path, plugin: Plugin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, real = str(of_others), str(write_real_images(tmp_path / "real"))
    assert main(["audit", out, "--reference", real, "--json"]) in (0, 5)
    shown = capsys.readouterr()
    assert "unet.kind: 'marked_plugin:unet' is not imported without --allow-plugins" in shown.err
    assert json.loads(shown.out)["metrics"]["on_class_rate"]["floor"] is None
    assert main(["report", out]) == 0
    shutil.copytree(out, tmp_path / "copy")
    assert main(["compare", out, str(tmp_path / "copy"), "--page", str(tmp_path / "compare.html")]) == 0
    assert not plugin.imported()
    capsys.readouterr()
    assert main(["audit", out, "--reference", real, "--json", "--allow-plugins"]) in (0, 5)
    assert json.loads(capsys.readouterr().out)["metrics"]["on_class_rate"]["floor"] is not None
    assert plugin.imported()


def test_an_installed_plug_in_is_not_imported_for_reading_either(of_others: Path, plugin: Plugin) -> None:
    plugin.install(f"[{GROUP}]\nmine = marked_plugin\n")
    assert verify_run(Store(str(of_others))) == {}
    assert not plugin.imported()


def test_the_digest_without_the_code_is_checked_as_with_it(of_others: Path, plugin: Plugin) -> None:
    store = Store(str(of_others))
    record = read_records(store, "rare-000000")[0]
    assert (record.guidance, verify_run(store)) == ("pull+low-confidence", {})
    path = of_others / "manifest.toml"
    text = path.read_text()
    path.write_text(text.replace("strength = 1", "strength = 2"))
    with pytest.raises(ManifestError, match=r"guidance\[0\]\.strength: 2 is not 1\.0, as in this run's model\.json"):
        verify_run(store)
    path.write_text(text.replace("strength = 1", "deepness = 1"))
    with pytest.raises(ManifestError, match=r"guidance\[0\]\.deepness: 1 is not None, as in"):
        verify_run(store)
    path.write_text(text)
    kept = of_others / "model.json"
    before = kept.read_text()
    kept.write_text(before.replace('"depth": 3', '"depth": 4'))
    with pytest.raises(OutputError, match=r"is not a whole run: manifest\.toml has the digest"):
        verify_run(store)
    content = json.loads(before)
    del content["plugins"]
    kept.write_text(json.dumps(content))
    with pytest.raises(ManifestError, match=r"guidance\[0\]\.term: 'marked_plugin:Pull' is not .*--allow-plugins"):
        seal_run(store)
    assert not plugin.imported()
    # Nothing is left to generate, so this adds what is missing and starts no actor.
    assert main(["generate", str(path), "--out", str(of_others), "--allow-plugins"]) == 0
    assert kept.read_text() == before and verify_run(store) == {}


def test_a_run_of_an_opaque_term_cannot_go_on(of_others: Path, plugin: Plugin, tmp_path: Path) -> None:
    from rarefy.audit.inputs.dataset import read_manifest

    manifest = read_manifest(Store(str(of_others)))
    with pytest.raises(ManifestError, match="guidance: 'pull' is not a term whose code was imported"):
        manifest.settings.chain(manifest.preset, manifest.terms)
    assert not plugin.imported()


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('path = "model"', 'path = "hf://evil/model"', "model.path"),
        ("total = 8", 'fill = { data = "/" }', "classes: 'fill' is not"),
    ],
)
def test_a_data_set_names_no_other_places(old: str, new: str, named: str, of_others: Path) -> None:
    """Without a model.json, or with a folder to count, reading it would download or list what the manifest names."""
    (of_others / "model.json").unlink()
    path = of_others / "manifest.toml"
    path.write_text(path.read_text().replace(old, new).replace('path = "model"', 'name = "fashion-mnist-28"'))
    with pytest.raises(ManifestError, match=named):
        verify_run(Store(str(of_others)))


def test_training_a_classifier_for_a_network_of_your_own_needs_permission(
    plugin: Plugin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = own_networks(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | {"classifier": None}
    config["files"] = {"unet": "unet.safetensors"}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(load_file(folder / "unet.safetensors"), folder / "unet.safetensors")
    network = "model_channels = 32\nnum_res_blocks = 1\nattention_resolutions = [2]\nchannel_mult = [1, 2]\n"
    recipe = f'data = "photos"\nmodel = "model"\n[classifier_network]\n{network}num_head_channels = 32\n[classifier]\n'
    train = "batch = 4\nimages = 8\n"
    (tmp_path / "train.toml").write_text(recipe + train)
    message = refused(["train", str(tmp_path / "train.toml")], capsys)
    assert "unet.kind: 'marked_plugin:unet' is not imported without --allow-plugins" in message
    assert not plugin.imported()
