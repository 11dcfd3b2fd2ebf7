"""The text of ``train.toml``: how a project's model is trained, and why."""

from __future__ import annotations

from rarefy.generate.progress import duration
from rarefy.models.config import NetworkConfig
from rarefy.project.choices import Choices, Part, balance
from rarefy.project.networks import CPU
from rarefy.project.toml import Setting, boolean, comment, number, numbers, quote, section, strings

MODEL = "model"


def train_text(choices: Choices) -> str:
    """The whole file."""
    parts = {part.name: part for part in choices.parts}
    blocks = [
        comment(
            f"How the model of {choices.name} is trained: rarefy train {choices.folder}/train.toml. Written by "
            "rarefy init. You may change any value before training starts. Training can be stopped and resumed."
        ),
        section("", "", _top(choices)),
        section("[unet]", f"The diffusion network: {choices.tier.why}.", _network(choices.unet)),
        section(
            "[classifier_network]",
            "Network of the noise-aware classifier, which guides the sampling, and of the judge: the U-Net's encoder.",
            _network(choices.classifier),
        ),
        *(section(f"[{name}]", _INTRO[name], _training(choices, part)) for name, part in parts.items()),
    ]
    return "\n\n".join(blocks) + "\n"


_INTRO = {
    "diffusion": "Training of the diffusion network. More images make it better; if you raise the number after "
    "training, the same command continues.",
    "classifier": "Training of the classifier.",
    "judge": "Training of the judge, a classifier of images without noise. It does not guide the sampling, so it "
    "judges independently.",
}


def _top(choices: Choices) -> list[Setting]:
    held_out = "test images" if choices.test else "images that are never trained on"
    skip = [Setting("skip_broken", "true", "as you asked: images that cannot be read are left out and counted")]
    colour = "all images are grey" if choices.channels == 1 else "at least one image is in colour"
    return [
        Setting("name", quote(choices.name), "name of the model"),
        Setting("description", quote(_description(choices)), "what the model is, for people"),
        Setting("data", quote(choices.data), f"relative to this file: {sum(choices.counts.values()):,} images"),
        *(skip if choices.skip_broken else []),
        Setting(
            "model",
            quote(MODEL),
            f"the model folder; its reference/ has {choices.held_out:,} {held_out}",
        ),
        Setting("image_size", str(choices.size), f"pixels: {choices.why_size}"),
        Setting("channels", str(choices.channels), colour),
        Setting(
            "class_names", strings(tuple(choices.counts)), "the data's own names; an image's class id is its place"
        ),
    ]


def _description(choices: Choices) -> str:
    counts = choices.counts
    return f"ADM trained on {choices.training:,} images of {choices.name} in {len(counts):,} classes, {choices.size} px"


def _network(network: NetworkConfig) -> list[Setting]:
    sides = [network.image_size >> level for level in range(len(network.channel_mult))]
    attention = [str(network.image_size // factor) for factor in network.attention_resolutions]
    where = f"factors of the size: self-attention at {' and '.join(attention)} px, where it is cheap"
    widths = [round(network.model_channels * mult) for mult in network.channel_mult]
    levels = ", ".join(f"{width} channels at {side} px" for width, side in zip(widths, sides, strict=True))
    blocks = "residual blocks that change the size cost time" if not network.resblock_updown else "as in ADM"
    return [
        Setting("model_channels", str(network.model_channels), "the width: twice as many take about 4 times as long"),
        Setting("channel_mult", numbers(network.channel_mult), levels),
        Setting("num_res_blocks", str(network.num_res_blocks), "residual blocks at each of these sizes"),
        Setting(
            "attention_resolutions",
            numbers(network.attention_resolutions),
            where,
        ),
        Setting("num_head_channels", str(network.num_head_channels), "channels of each attention head"),
        Setting("dropout", number(network.dropout), _dropout(network.dropout)),
        Setting("resblock_updown", boolean(network.resblock_updown), blocks),
        Setting("conv_resample", boolean(network.conv_resample), "for the same reason"),
    ]


def _dropout(value: float) -> str:
    return "slows down memorising" if value else "none: so small a network hardly memorises images"


def _training(choices: Choices, part: Part) -> list[Setting]:
    diffusion, tier = part.name == "diffusion", choices.tier
    passes = f"{part.passes:,.0f} passes over {choices.training:,} images" if part.passes >= 1 else "less than one pass"
    time = f"{duration(part.seconds)} at {part.speed.images_per_s:,.0f} images/s"
    share, why = balance(choices.imbalance, part.name)
    split = [Setting("accumulate", str(part.speed.accumulate), "parts of a batch: the largest that fit in memory")]
    rate, plateau = (tier.lr, 0.15) if diffusion else (1e-3 if tier is CPU else 3e-4, 0.8)
    small = "usual for networks of this width" if tier is CPU else "ADM's order of magnitude for networks of this width"
    return [
        Setting("images", number(part.images), f"{part.why_images}: {passes}, about {time}"),
        Setting("batch", str(tier.batch), "images per step"),
        *(split if part.speed.accumulate > 1 else []),
        Setting("lr", number(rate), f"peak learning rate, {small}"),
        Setting("warmup", number(min(20_000, part.images // 10)), "images over which the learning rate rises"),
        Setting("decay", number(plateau), f"it falls to zero over the last {plateau:.0%} of training"),
        Setting("weight_decay", number(0.0 if diffusion else 0.05), "none, as in ADM" if diffusion else "as in ADM"),
        Setting("ema_halflife", number(max(part.images // 20, 1)), "images: half-life of the averaged weights"),
        Setting("flip", boolean(choices.mirror.flip), f"mirror half of the images; {choices.mirror.why}"),
        Setting("balance", number(share), why),
        Setting("seed", str(choices.seed), "of all random numbers in training"),
    ]
