"""diffusers' models as rarefy runs them, compared with diffusers itself, with random weights."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_model import make_run, write_manifest
from small_project import NAMES, write_photos, write_reference
from small_training import images
from torch import Tensor

from rarefy.cli import main
from rarefy.diffusion.sampler import networks_of, reverse_chain
from rarefy.diffusion.settings import SamplerSettings
from rarefy.errors import ManifestError, MissingPackageError
from rarefy.manifest import load_manifest
from rarefy.models.adapters import diffusers as adapter
from rarefy.models.folder import read_model_folder
from rarefy.models.importing.diffusers import import_diffusers
from rarefy.models.load import Models, load_models
from rarefy.shards.metadata import read_records
from rarefy.torchvision_operators import import_module

pytest.importorskip("diffusers")
library: Any = import_module(adapter.UNET) and import_module("diffusers")
CPU, STEPS = torch.device("cpu"), 100
SHAPE: dict[str, Any] = {
    "sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 16), "layers_per_block": 1,
    "norm_num_groups": 4, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
LATENT = {"vae": ["diffusers", "AutoencoderKL"]}


def save_pipeline(folder: Path, scheduler: Any = None, **shape: Any) -> Any:
    """Write a pipeline of a small U-Net with random weights; returns the network."""
    torch.manual_seed(0)
    network = library.UNet2DModel(**{**SHAPE, **shape})
    library.DDPMPipeline(network, scheduler or library.DDPMScheduler()).save_pretrained(folder)
    return network.eval()


def imported(source: Path, out: Path, names: str | None = None) -> Models:
    import_diffusers(str(source), str(out), names)
    return load_models(read_model_folder(out), None, None, (None, None), CPU)


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("change", [{}, {"center_input_sample": True, "resnet_time_scale_shift": "scale_shift"}])
def test_the_network_is_diffusers_own(classes: int | None, change: dict[str, Any], tmp_path: Path) -> None:
    network = save_pipeline(tmp_path / "pipe", num_class_embeds=classes, **change)
    network = network.to(memory_format=torch.channels_last)  # as rarefy loads it, for the same rounding
    models = imported(tmp_path / "pipe", tmp_path / "model")
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([0.0, 500.0, 999.0])
    y = None if classes is None else torch.tensor([0, 2, 1])
    assert (models.preset.num_classes, models.classifier) == (classes, None)
    with torch.no_grad():
        assert torch.equal(models.unet(x, t, y), network(x, t.long(), class_labels=y).sample)


SCHEDULES = [("linear", 1e-4, 0.02), ("linear", 0.0015, 0.0195), ("scaled_linear", 0.00085, 0.012),
             ("squaredcos_cap_v2", 1e-4, 0.02)]  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_ddim_chain_is_that_of_the_pipeline(schedule: tuple[Any, ...], prediction: str, tmp_path: Path) -> None:
    name, start, end = schedule
    settings = {"beta_schedule": name, "beta_start": start, "beta_end": end, "prediction_type": prediction}
    scheduler = library.DDIMScheduler(num_train_timesteps=STEPS, **settings)
    network = save_pipeline(tmp_path / "pipe", scheduler, num_class_embeds=3)
    models = imported(tmp_path / "pipe", tmp_path / "model")
    x, y = torch.randn(2, 1, 8, 8), torch.tensor([2, 0])
    chain = SamplerSettings("ddim", "ddim10").chain(models.preset)
    *_, last = reverse_chain(networks_of(models, [0, 1]), chain, x, y, lambda step: torch.zeros_like(x))
    scheduler.set_timesteps(10)
    assert scheduler.timesteps.tolist() == chain.schedule.timesteps.flip(0).tolist()
    with torch.no_grad():
        for t in scheduler.timesteps:
            output = network(x, t, class_labels=y).sample
            x = scheduler.step(output, t, x, use_clipped_model_output=True).prev_sample
    torch.testing.assert_close(last.x, x, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("variance", "channels"), [("fixed_large", 1), ("learned_range", 2)])
@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_an_ancestral_chain_is_that_of_the_pipeline(
    variance: str, channels: int, prediction: str, tmp_path: Path
) -> None:
    scheduler = library.DDPMScheduler(STEPS, variance_type=variance, prediction_type=prediction)
    network = save_pipeline(tmp_path / "pipe", scheduler, out_channels=channels)
    models = imported(tmp_path / "pipe", tmp_path / "model")
    x, y = torch.randn(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64)
    chain, draws = SamplerSettings("ancestral", "ddim20").chain(models.preset), noise_of(x)
    *_, last = reverse_chain(networks_of(models, [0, 1]), chain, x, y, draws)
    scheduler.set_timesteps(20)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t).sample, t, x, generator=generator).prev_sample
    torch.testing.assert_close(last.x, x, rtol=0, atol=2e-5)


def noise_of(like: Tensor) -> Callable[[int], Tensor]:
    """The draws of diffusers from a generator with seed 1."""
    generator = torch.Generator().manual_seed(1)
    return lambda step: torch.randn(like.shape, generator=generator)


def test_the_command_describes_what_it_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_pipeline(tmp_path / "pipe", library.DDPMScheduler(clip_sample=False), num_class_embeds=2)
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    options = ["--out", str(tmp_path / "pets"), "--class-names", str(tmp_path / "names.txt")]
    assert main(["import", "diffusers", str(tmp_path / "pipe"), *options]) == 0
    printed = capsys.readouterr().out
    assert "pets: 8 px grey, 2 classes, schedule linear, 1,000 steps, predicts eps" in printed
    assert "no classifier" in printed
    assert "note: the scheduler's clip_sample is False, but rarefy clips" in printed
    assert "note: the scheduler's variance_type is 'fixed_small', but rarefy's ancestral steps" in printed
    assert read_model_folder(tmp_path / "pets").class_names == ("cat", "dog")


def test_old_names_of_attention_layers_and_half_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """google/ddpm-* has such names; the weights' file is a half-precision variant."""
    network = save_pipeline(tmp_path / "pipe")
    file = tmp_path / "pipe" / "unet" / "diffusion_pytorch_model.safetensors"
    renamed = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {name: value.half() for name, value in load_file(file).items()}
    for new, old in renamed.items():
        state = {name.replace(f".{new}.", f".{old}."): value for name, value in state.items()}
    assert any(".query." in name for name in state)
    save_file(state, file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    file.unlink()
    models = imported(tmp_path / "pipe", tmp_path / "model")
    said = capsys.readouterr().err
    assert "diffusers' old names of attention layers; stored as float16" in said and said.count("\n") == 1
    for name, value in network.state_dict().items():
        assert torch.equal(models.unet.state_dict()[name], value.half().float())


def test_a_unet_folder_needs_its_schedule(tmp_path: Path) -> None:
    network = library.UNet2DModel(**SHAPE)
    network.save_pretrained(tmp_path / "unet")
    with pytest.raises(ManifestError, match="the noise schedule is needed too"):
        import_diffusers(str(tmp_path / "unet"), str(tmp_path / "model"))
    library.DDIMScheduler(beta_schedule="squaredcos_cap_v2").save_pretrained(tmp_path / "unet")
    models = imported(tmp_path / "unet", tmp_path / "model")
    assert (models.preset.schedule, models.preset.beta_range) == ("cosine", None)


CLASSIFIER = """[classifier_network]
model_channels = 32
channel_mult = [1, 1]
num_res_blocks = 1
attention_resolutions = [2]
num_head_channels = 32
[classifier]
images = 32
batch = 16
"""


@pytest.mark.parametrize(("classes", "prediction"), [(None, "epsilon"), (4, "v_prediction")])
def test_a_classifier_is_trained_for_an_imported_model_and_guides_it(
    classes: int | None, prediction: str, tmp_path: Path
) -> None:
    scheduler = library.DDPMScheduler(num_train_timesteps=STEPS, prediction_type=prediction)
    save_pipeline(tmp_path / "pipe", scheduler, num_class_embeds=classes)
    (tmp_path / "names.txt").write_text("\n".join(reversed(NAMES)))  # another order than that of the folders
    names = None if classes is None else str(tmp_path / "names.txt")
    unet = imported(tmp_path / "pipe", tmp_path / "model", names).checkpoint_sha256
    write_photos(tmp_path / "photos")
    write_reference(tmp_path / "held-out", images(92).take(np.arange(52, 92)))
    head = 'data = "photos"\nmodel = "model"\nreference = "held-out"\n'
    (tmp_path / "train.toml").write_text(head + CLASSIFIER)
    assert main(["train", "classifier", str(tmp_path / "train.toml"), "--device", "cpu"]) == 0
    model = read_model_folder(tmp_path / "model")
    assert model.labels == (NAMES if classes is None else tuple(reversed(NAMES)))
    record = json.loads((tmp_path / "model" / "provenance.json").read_text())
    assert set(record) == {"imported", "classifier", "quality"}
    assert ("on_class" in record["quality"]) == (classes is not None)  # an unconditional model chooses no class
    assert "Its classifier was trained on" in (tmp_path / "model" / "README.md").read_text()
    guided = '[[guidance]]\nterm = "low-confidence"\nscale = 1.0'
    manifest = write_manifest(tmp_path / "rare.toml", "model", guided)
    assert main(["plan", str(manifest)]) == 0
    records = read_records(make_run(load_manifest(manifest), tmp_path / "out"), "rare-000000")
    assert {each.checkpoint_sha256 for each in records} == {unet}
    assert all(each.class_name == model.labels[each.class_id] for each in records)
    assert all(each.confidence is not None for each in records)


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("model_index.json", LATENT, "it has a vae, so its U-Net works on latents"),
        ("model_index.json", {"text_encoder": ["transformers", "CLIP"]}, "not a pipeline of just a UNet2DModel"),
        ("model_index.json", {"unet": None}, "not a pipeline of just a UNet2DModel"),
        ("unet/config.json", {"_class_name": "UNet2DConditionModel"}, "'UNet2DConditionModel' is not UNet2DModel"),
        ("unet/config.json", {"sample_size": None}, "sample_size: it is missing; give the height and width"),
        ("unet/config.json", {"sample_size": [8, 16]}, "sample_size: [8, 16] is not"),
        ("unet/config.json", {"in_channels": 4}, "in_channels: 4 is not 1 (grey) or 3 (colour)"),
        ("unet/config.json", {"out_channels": 3}, "out_channels: 3 is not 1, or 2 with a learned variance"),
        ("unet/config.json", {"time_embedding_type": "fourier"}, "time_embedding_type: 'fourier' is not positional"),
        ("unet/config.json", {"class_embed_type": "timestep"}, "class_embed_type: 'timestep' is not null"),
        ("unet/config.json", {"block_out_channels": [8]}, "cannot build this UNet2DModel"),
        ("unet/config.json", {"new_option": 1}, "unexpected keyword argument 'new_option'"),
        ("unet/config.json", {"norm_num_groups": 0}, "cannot build this UNet2DModel"),
        ("unet/config.json", {"sample_size": 9}, "sample_size: 9 is not a size of images that this network"),
        ("unet/config.json", {"layers_per_block": 2}, "does not fit this network: missing"),
        ("scheduler/scheduler_config.json", {"_class_name": "ScoreSdeVeScheduler"}, "_class_name: 'ScoreSdeVeSch"),
        ("scheduler/scheduler_config.json", {"trained_betas": [0.1]}, "trained_betas: [0.1] is not supported"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr: True is not"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "sigmoid"}, "'sigmoid' is not one of linear, scaled_"),
        ("scheduler/scheduler_config.json", {"beta_schedule": ["linear"]}, "['linear'] is not one of linear, scaled_"),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, "'flow' is not one of epsilon, v_prediction"),
        ("scheduler/scheduler_config.json", {"beta_end": "0.02"}, "is not two numbers"),
        ("scheduler/scheduler_config.json", {"beta_end": 1.5}, "is not 0 < beta_start <= beta_end < 1"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 0}, "num_train_timesteps: 0 is not an integer"),
        ("scheduler/scheduler_config.json", {"variance_type": "learned_range"}, "'learned_range' is not possible"),
    ],
)
def test_what_cannot_be_right_is_refused(
    file: str, changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_pipeline(tmp_path / "pipe")
    edit(tmp_path / "pipe" / file, **changes)
    assert main(["import", "diffusers", str(tmp_path / "pipe"), "--out", str(tmp_path / "model")]) == 2
    captured = capsys.readouterr().err
    assert message in captured and captured.count("\n") == 1
    assert [each.name for each in tmp_path.iterdir()] == ["pipe"]


def test_missing_and_broken_files(tmp_path: Path) -> None:
    save_pipeline(tmp_path / "pipe")
    for name, message in [
        ("unet/diffusion_pytorch_model.safetensors", "it has no diffusion_pytorch_model.safetensors"),
        ("scheduler/scheduler_config.json", "cannot be read"),
        ("model_index.json", "it has no model_index.json"),
    ]:
        (tmp_path / "pipe" / name).unlink()
        with pytest.raises(ValueError, match=message):
            import_diffusers(str(tmp_path / "pipe"), str(tmp_path / "model"))
    with pytest.raises(ManifestError, match="is not a folder of a diffusers pipeline"):
        import_diffusers(str(tmp_path / "absent"), str(tmp_path / "model"))


def test_without_the_library_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_pipeline(tmp_path / "pipe")
    models = imported(tmp_path / "pipe", tmp_path / "model")
    adapter._adapted.cache_clear()
    for name in ("diffusers", adapter.UNET):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackageError, match=r"^unet\.kind: 'diffusers' needs diffusers: .*rarefy\[diffusers\]'$"):
        load_models(models.preset, None, None, (None, None), CPU)
    adapter._adapted.cache_clear()
