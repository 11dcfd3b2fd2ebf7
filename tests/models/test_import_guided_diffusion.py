"""guided-diffusion's flags give the models that ship, and its files become model folders with the same weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rarefy.cli import main
from rarefy.errors import ManifestError
from rarefy.models.adm import Classifier, UNet
from rarefy.models.folder import find_model, read_model_folder
from rarefy.models.importing.class_names import read_class_names
from rarefy.models.importing.guided_diffusion import describe, parse_flags

# From guided-diffusion's README.
COMMON = "--diffusion_steps 1000 --learn_sigma True --num_res_blocks 2 --resblock_updown True --use_fp16 True"
LARGE = f"--attention_resolutions 32,16,8 {COMMON} --noise_schedule linear --num_channels 256"
README = {
    "adm-imagenet-64": "--attention_resolutions 32,16,8 --class_cond True --diffusion_steps 1000 --dropout 0.1 "
    "--image_size 64 --learn_sigma True --noise_schedule cosine --num_channels 192 --num_head_channels 64 "
    "--num_res_blocks 3 --resblock_updown True --use_new_attention_order True --use_fp16 True "
    "--use_scale_shift_norm True --classifier_scale 1.0 --classifier_depth 4",
    "adm-imagenet-128": f"{LARGE} --class_cond True --image_size 128 --num_heads 4 --classifier_scale 0.5",
    "adm-imagenet-256": f"{LARGE} --class_cond True --image_size 256 --num_head_channels 64 --classifier_scale 1.0",
    "adm-imagenet-256-uncond": f"{LARGE} --class_cond False --image_size 256 --num_head_channels 64 "
    "--classifier_scale 10.0",
    "adm-imagenet-512": f"{LARGE} --class_cond True --image_size 512 --num_head_channels 64 --classifier_scale 4.0",
}
SMALL = (
    "--image_size 8 --channel_mult 1,2 --num_channels 32 --num_res_blocks 1 --attention_resolutions 4 "
    "--num_head_channels 32 --class_cond True --learn_sigma True --diffusion_steps 100 --noise_schedule=cosine"
)


@pytest.mark.parametrize("name", README)
def test_flags_of_the_readme_describe_the_models_that_ship(name: str) -> None:
    ours, shipped = describe(parse_flags(README[name]), with_classifier=True), find_model(name)
    same = ("unet", "classifier", "schedule", "diffusion_steps", "prediction", "beta_range", "recommended_scale")
    assert {key: getattr(ours, key) for key in same} == {key: getattr(shipped, key) for key in same}


def small_files(folder: Path, classes: int) -> tuple[Path, UNet]:
    model = describe(parse_flags(SMALL), with_classifier=False, class_names=["x"] * classes)
    torch.manual_seed(0)
    network = UNet(model.unet)  # type: ignore[arg-type]
    for parameter in network.parameters():
        parameter.data.normal_()
    torch.save(network.state_dict(), folder / "ema_0.9999_010000.pt")
    return folder / "ema_0.9999_010000.pt", network


def test_a_file_becomes_a_model_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, network = small_files(tmp_path, 3)
    (tmp_path / "cats").mkdir()  # an empty folder is as good as none
    (tmp_path / "names.txt").write_text("red fox\nsnow leopard\nlynx\n")
    arguments = ["--unet", str(path), "--class-names", str(tmp_path / "names.txt"), "--out", str(tmp_path / "cats")]
    assert main(["import", "guided-diffusion", "--flags", f"{SMALL} --batch_size 4", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "cats: 8 px colour, 3 classes, schedule cosine, 100 steps, predicts eps" in printed
    assert "note: --batch_size describe" in printed
    folder = read_model_folder(tmp_path / "cats")
    assert (folder.name, folder.class_names, folder.classifier) == ("cats", ("red fox", "snow leopard", "lynx"), None)
    assert folder.unet == network.config
    weights = load_file(folder.file("unet"))
    assert all(torch.equal(weights[name], value) for name, value in network.state_dict().items())
    assert sorted(each.name for each in tmp_path.iterdir()) == ["cats", path.name, "names.txt"]
    sources = json.loads((tmp_path / "cats" / "provenance.json").read_text())["imported"]["weights"]
    assert sources["unet"]["file"] == path.name


def test_a_classifier_comes_along(tmp_path: Path) -> None:
    path, _ = small_files(tmp_path, 2)
    (tmp_path / "names.txt").write_text("a\nb\n")
    flags = SMALL.replace("--image_size 8 --channel_mult 1,2", "--image_size 64")
    model = describe(parse_flags(f"{flags} --classifier_width 64"), True, ["a", "b"])
    assert isinstance(model.classifier, type(model.unet))
    torch.save(UNet(model.unet).state_dict(), path)  # type: ignore[arg-type]
    torch.save({"module." + k: v for k, v in Classifier(model.classifier).state_dict().items()}, tmp_path / "c.pt")
    arguments = ["--unet", str(path), "--classifier", str(tmp_path / "c.pt"), "--out", str(tmp_path / "out")]
    options = ["--class-names", str(tmp_path / "names.txt"), *arguments]
    assert main(["import", "guided-diffusion", "--flags", f"{flags} --classifier_width 64", *options]) == 0
    folder = read_model_folder(tmp_path / "out")
    assert folder.classifier == model.classifier and folder.classifier_classes == 2
    Classifier(model.classifier).load_state_dict(load_file(folder.file("classifier")))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--num_channel 192", "--num_channel' is not a flag of guided-diffusion's scripts (nearest: --num_channels)"),
        ("--large_size 256", "--large_size' is not a flag"),
        ("--num_channels many", "flags: --num_channels: 'many' is not a whole number"),
        ("--class_cond maybe", "flags: --class_cond: 'maybe' is not True or False"),
        ("--class_cond --learn_sigma True", "'--class_cond' is not complete: it needs a value"),
        ("num_channels 192", "'num_channels' is not a flag that starts with --"),
        ("--image_size '64", "is not readable: No closing quotation"),
        ("--image_size 32", "flags: --image_size: 32 is not one of 64, 128, 256, 512, unless --channel_mult is given"),
        ("--channel_mult 1,two", "flags: --channel_mult: '1,two' is not numbers"),
        ("--attention_resolutions 32,0", "flags: --attention_resolutions: '32,0' is not resolutions from 1 to 64"),
        ("--noise_schedule sqrt", "flags: --noise_schedule: 'sqrt' is not linear or cosine"),
        ("--rescale_timesteps True --diffusion_steps 500", "flags: --rescale_timesteps: True is not possible here"),
        ("--classifier_pool mean --class_cond True", "flags: pool: 'mean' is not one of attention"),
        ("--image_size 66 --channel_mult 1,1,1", "flags: image_size: 66 is not divisible by 4"),
    ],
)
def test_flags_that_cannot_be_right_are_refused(flags: str, message: str) -> None:
    with pytest.raises(ManifestError) as raised:
        describe(parse_flags(flags), with_classifier=True)
    assert message in str(raised.value)


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and not captured.out
    return captured.err


def test_bad_input_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = small_files(tmp_path, 3)
    (tmp_path / "twice.txt").write_text("Lynx\nfox\nlynx\n")
    (tmp_path / "gap.txt").write_text("lynx\n\nfox\n")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes").touch()
    before = sorted(tmp_path.rglob("*"))
    start = ["import", "guided-diffusion", "--flags", SMALL, "--unet"]
    out = ["--out", str(tmp_path / "new")]
    assert "label_emb.weight (3, 128) instead of (1000, 128)" in refused([*start, str(path), *out], capsys)
    assert "cannot be read (No such file" in refused([*start, str(tmp_path / "no.pt"), *out], capsys)
    assert "'s3://bucket/model' is not a local folder" in refused(
        [*start, str(path), "--out", "s3://bucket/model"], capsys
    )
    assert "is not free: something is there" in refused([*start, str(path), "--out", str(tmp_path / "used")], capsys)
    names = [*start, str(path), *out, "--class-names"]
    assert "'lynx' is in lines 1 and 3" in refused([*names, str(tmp_path / "twice.txt")], capsys)
    assert "line 2 is empty" in refused([*names, str(tmp_path / "gap.txt")], capsys)
    assert "No such file" in refused([*names, str(tmp_path / "none.txt")], capsys)
    odd = SMALL.replace("--num_channels 32", "--num_channels 40")
    assert "the imported model: unet.model_channels: 40 is not times 1 a multiple of 32" in refused(
        ["import", "guided-diffusion", "--flags", odd, "--unet", str(path), *out], capsys
    )
    assert sorted(tmp_path.rglob("*")) == before


def test_names_of_imagenets_classes() -> None:
    names = read_class_names("imagenet")
    assert len(names) == len({name.casefold() for name in names}) == 1000
    assert (names[0], names[474], names[999]) == ("tench", "cardigan (474)", "toilet tissue")
