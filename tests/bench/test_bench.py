"""rarefy bench: operations by hand, where the time goes, the batch that auto picks, the command."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from rarefy.bench import measure
from rarefy.bench.batch import GAIN, LARGEST, find_batch
from rarefy.bench.flops import count_flops, count_training_flops
from rarefy.bench.step import classifier_passes, full_steps, network_term_share, time_step
from rarefy.bench.workload import bench_manifest, enlarged, load_workload, random_models
from rarefy.cli import main
from rarefy.diffusion.sampler import SamplerSettings
from rarefy.guidance.terms import BoostAndSkip, ClassifierGuidance, LowConfidence, PredictedRealImage, SelfGuided
from rarefy.models.config import NetworkConfig
from rarefy.models.folder import find_model

EMBEDDED = find_model("fashion-mnist-28")
C, SIDE = 32, 8
SMALL = NetworkConfig(
    image_size=SIDE, in_channels=1, model_channels=C, out_channels=2, num_res_blocks=1, attention_resolutions=(),
    channel_mult=(1,), num_classes=10, num_head_channels=C,
)  # fmt: skip
SMALL_PRESET = replace(EMBEDDED, unet=SMALL, classifier=replace(SMALL, num_classes=None, out_channels=10))


@pytest.fixture(autouse=True)
def torch_threads() -> Iterator[None]:
    """The command sets torch's threads for its own process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def conv(c_in: int, c_out: int, kernel: int = 3) -> int:
    return 2 * SIDE**2 * kernel**2 * c_in * c_out


def linear(c_in: int, c_out: int, tokens: int = 1) -> int:
    return 2 * tokens * c_in * c_out


def res_block(c_in: int) -> int:
    skip = conv(c_in, C, 1) if c_in != C else 0
    return conv(c_in, C) + linear(4 * C, 2 * C) + conv(C, C) + skip


EMBEDDING = linear(C, 4 * C) + linear(4 * C, 4 * C)
ATTENTION = linear(C, 3 * C, SIDE**2) + 2 * linear(SIDE**2, C, SIDE**2) + linear(C, C, SIDE**2)
ENCODER = EMBEDDING + conv(1, C) + 3 * res_block(C) + ATTENTION


def test_operations_of_the_unet_are_those_of_its_layers() -> None:
    decoder = 2 * res_block(2 * C) + conv(C, 2)
    assert count_flops(SMALL_PRESET).unet == ENCODER + decoder


def test_operations_of_the_classifier_and_of_its_gradient() -> None:
    tokens = SIDE**2 + 1
    products = 2 * 2 * tokens * C  # one query: its products with the keys, and with the values
    pool = linear(C, C) + linear(C, 2 * C, tokens) + products + linear(C, 10)
    found = count_flops(SMALL_PRESET)
    assert found.classifier_forward == ENCODER + pool
    # A layer's gradient costs what the layer does, a product of two activations twice that; embeddings have none.
    embeddings = EMBEDDING + 3 * linear(4 * C, 2 * C)
    assert found.classifier_backward == ENCODER + pool - embeddings + 2 * linear(SIDE**2, C, SIDE**2) + products


def test_operations_of_a_training_step_are_three_times_the_unets() -> None:
    decoder = 2 * res_block(2 * C) + conv(C, 2)
    # A layer has two gradients that each cost what it does; the image and the embedded time step need none.
    not_asked = conv(1, C) + linear(C, 4 * C)
    assert count_training_flops(SMALL_PRESET) == 3 * (ENCODER + decoder) - not_asked


@pytest.mark.usefixtures("switches")
@pytest.mark.parametrize("allowed", [True, False])
def test_a_ceiling_is_of_its_type_and_leaves_the_switch_alone(allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.backends.cudnn.allow_tf32 = allowed
    seen = []

    def run(cases: Mapping[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, list[float]]:
        seen.append(torch.backends.cudnn.allow_tf32)
        return {name: [1.0] for name in cases}

    monkeypatch.setattr(measure, "interleave", run)
    assert measure.ceiling_gflops(torch.float32, torch.device("cpu")) == pytest.approx(2 * 2048**3 / 1e9)
    assert (seen, torch.backends.cudnn.allow_tf32) == ([False], allowed)


def test_a_step_is_its_parts() -> None:
    models = random_models(SMALL_PRESET, "exact", torch.device("cpu"))
    guided = SamplerSettings(steps="4").chain(SMALL_PRESET, (LowConfidence(),))
    split = time_step(models, guided, 2)
    parts = (split.unet, split.classifier_forward, split.classifier_backward, split.rest)
    assert min(parts) > 0
    assert split.step == pytest.approx(sum(parts))
    plain = time_step(models, replace(guided, terms=()), 2)
    assert (plain.classifier_forward, plain.classifier_backward) == (0, 0)
    assert plain.step == pytest.approx(plain.unet + plain.rest)


def test_network_terms_are_a_part_of_their_own_that_counts_where_they_act() -> None:
    models = random_models(SMALL_PRESET, "exact", torch.device("cpu"))
    settings = SamplerSettings(steps="10")  # t = 0, 111, ..., 999
    terms = (LowConfidence(window=(0, 450)), SelfGuided(every=3, window=(0, 700)), BoostAndSkip(start=900))
    chain = settings.chain(SMALL_PRESET, terms)
    assert network_term_share(chain) == pytest.approx(3 / 9)  # steps 0, 3 and 6 of the nine below 900
    assert network_term_share(replace(chain, terms=terms[:1])) == 0
    assert classifier_passes(chain) == 5 and classifier_passes(full_steps(chain)) == 9
    assert network_term_share(full_steps(chain)) == 1
    split = time_step(models, full_steps(chain), 2)
    parts = split.unet, split.classifier_forward, split.classifier_backward, split.terms, split.rest
    assert min(parts) > 0
    assert split.step == pytest.approx(sum(parts))


def test_classifier_passes_follow_windows_and_every_nth_step() -> None:
    settings = SamplerSettings(steps="10")  # t = 0, 111, ..., 999
    late = ClassifierGuidance(window=(0, 450))  # 0, 111, 222, 333, 444
    cases = [((), 1, 0), ((late,), 1, 5), ((late,), 2, 3), ((late, LowConfidence()), 1, 10),
             ((PredictedRealImage(gamma=0.1),), 1, 0)]  # fmt: skip
    for terms, every, passes in cases:
        chain = replace(settings, classifier_every=every).chain(EMBEDDED, terms)
        assert classifier_passes(chain) == passes
        wanted = 10 if any(not isinstance(term, PredictedRealImage) for term in terms) else 0
        assert classifier_passes(full_steps(chain)) == wanted


@dataclass(frozen=True)
class Speed:
    images_per_second: float
    peak_bytes: int


def machine(rate: Callable[[int], float], bytes_an_image: int) -> Callable[[int], Speed]:
    return lambda batch: Speed(rate(batch), 1000 + batch * bytes_an_image)


def test_auto_stops_where_the_next_batch_gains_too_little() -> None:
    # b / (b + 1): 8 gains 8/9 over 4/5, 11 %; 16 gains 5.9 %; 32 gains 3.0 %.
    found, best = find_batch(machine(lambda b: b / (b + 1), 1), 1, 1000, 10**9)
    assert (best.batch, list(found)) == (16, [1, 2, 4, 8, 16, 32])
    assert "32" in best.reason and "+3.0%" in best.reason


def test_auto_stops_before_memory_is_full() -> None:
    # 1000 at rest and 100 an image: 2600 at 16, 4200 at 32.
    for limit, batch in ((2600, 16), (4199, 16), (4200, 32)):
        found, best = find_batch(machine(float, 100), 2, 1000, limit)
        assert (best.batch, max(found)) == (batch, batch)
        assert "would take" in best.reason


def test_auto_ends() -> None:
    _, best = find_batch(machine(float, 0), 3, 1000, 10**9)
    assert LARGEST / 2 < best.batch <= LARGEST
    found, best = find_batch(machine(lambda b: 1 + GAIN if b > 1 else 1.0, 0), 1, 1000, 10**9)
    assert (best.batch, list(found)) == (2, [1, 2, 4])


def test_models_twice_the_size_work_and_cost_about_four_times() -> None:
    large = enlarged(EMBEDDED, 2)
    assert large.image_size == 56
    ratio = count_flops(large).unet / count_flops(EMBEDDED).unet
    assert 3.9 < ratio < 6
    models = random_models(large, "exact", torch.device("cpu"))
    assert models.unet(torch.zeros(1, 1, 56, 56), torch.zeros(1), torch.tensor([0])).shape == (1, 2, 56, 56)
    assert models.classifier(torch.zeros(1, 1, 56, 56), torch.zeros(1)).shape == (1, 10)


def test_weights_that_are_not_here_are_random_and_said_to_be(tmp_path: Path) -> None:
    manifest = bench_manifest(None, None, None)
    models, source = load_workload(manifest, torch.device("cpu"))
    assert (source, len(models.checkpoint_sha256)) == ("embedded", 64)
    path = tmp_path / "away.toml"
    path.write_text(manifest.text.replace("[sampler]", 'checkpoint = "away.pt"\n[sampler]'))
    models, source = load_workload(bench_manifest(str(path), None, None), torch.device("cpu"))
    assert source.startswith("random")
    assert models.preset.name == EMBEDDED.name


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "--batch", "2,1", "--growth", "--actors", "2", "--compile", "off", "--precision", "fast"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["preset"], found["precision"], found["steps"]) == (EMBEDDED.name, "fast", 250)
    assert found["classifier_passes"] == 250
    assert found["weights_bytes"] > 4e6
    assert found["ceiling_gflops"] > 0
    assert found["machine"]["torch"] == torch.__version__
    assert [point["batch"] for point in found["batches"]] == [1, 2]
    for point in found["batches"]:
        split, seconds = point["split"], point["seconds_a_step"]
        assert seconds == pytest.approx(sum(split.values()))
        assert point["images_per_second"] == pytest.approx(point["batch"] / (250 * seconds))
        work = point["unet_gflops"] * 1e9 * split["unet"]
        assert work == pytest.approx(point["batch"] * found["flops"]["unet"])
        assert point["peak_bytes"] > found["weights_bytes"]
    assert [point["image_size"] for point in found["sizes"]] == [28, 56]
    assert [point["actors"] for point in found["actors"]] == [2]
    assert found["actors"][0]["images_per_second"] > 0


def test_table_of_auto(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bench.toml"
    path.write_text(bench_manifest(None, None, None).text.replace("[[guidance]]", "steps = 3\n[[guidance]]"))
    assert main(["bench", str(path), "--batch", "auto"]) == 0
    lines = capsys.readouterr().out.splitlines()
    header = next(line for line in lines if "images/s" in line)
    rows = [line for line in lines if line.split() and line.split()[0].isdecimal()]
    assert len(rows) >= 2 and {len(row) for row in rows} == {len(header)}
    chosen = next(line for line in lines if line.startswith("batch = "))
    assert int(chosen.removeprefix("batch = ")) in [int(row.split()[0]) for row in rows]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["none.toml"], ["none.toml", "readable"]),
        (["--preset", "adm"], ["'adm'", "adm-imagenet-64"]),
        (["none.toml", "--preset", "adm-imagenet-64"], ["preset", "manifest"]),
        (["--batch", "0"], ["batch", "'0'", "auto or whole numbers from 1"]),
        (["--batch", "4,big"], ["batch", "'4,big'"]),
        (["--actors", "65"], ["actors", "'65'", "from 1 to 64"]),
        (["--threads", "0"], ["threads", "0", "from 1"]),
        (["--device", "tpu"], ["device", "'tpu'", "cpu or cuda"]),
        (["--compile", "all"], ["--compile", "all", "full"]),
        (["--precision", "bf16"], ["--precision", "bf16"]),
    ],
)
def test_bad_input(arguments: list[str], named: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("rarefy: error: ") and captured.err.count("\n") == 1
    assert all(part in captured.err for part in named), captured.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_where_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--device", "cuda"]) == 2
    assert "device: 'cuda' is not possible here: torch finds no GPU" in capsys.readouterr().err
