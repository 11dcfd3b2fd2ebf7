"""What the commands of the command line share: exit codes, examples, and how a command is added and prints."""

from __future__ import annotations

import argparse
import json
import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from rarefy.errors import RarefyError, near_name, one_of

OK, USER_ERROR, PROBLEMS = 0, 2, 1
GATES_FAILED, INCOMPLETE_AUDIT = 3, 5
TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h
EXAMPLES = {
    "init": """rarefy init photos/ --out mine
rarefy init photos/train --test photos/test --size 64 --out mine
rarefy init photos/ --out quick --images 20000   a first look at what training gives""",
    "run": """rarefy run demo --out out/demo   a manifest that ships
rarefy run mine/rare.toml --out out/rare
rarefy run mine/rare.toml --out s3://bucket/rare --ray-address auto""",
    "plan": """rarefy plan   lists the manifests that ship
rarefy plan mine/rare.toml
rarefy plan mine/rare.toml --fill photos/ --to 5000""",
    "generate": "rarefy generate mine/rare.toml --out out/rare --actors 2",
    "seal": "rarefy seal out/rare\nrarefy seal out/rare --repair",
    "select": "rarefy select out/rare\nrarefy select out/rare --keep-exhausted",
    "verify": "rarefy verify out/rare   exits with 1 if anything is missing or damaged",
    "status": "rarefy status s3://bucket/rare",
    "audit": "rarefy audit out/rare\nrarefy audit out/rare --reference photos/test --limit 2000",
    "report": "rarefy report out/rare",
    "view": """rarefy view out/rare --open
rarefy view s3://bucket/rare --reference photos/test
rarefy view out/rare --static gallery.html     one file to send to others""",
    "compare": "rarefy compare out/plain out/rare --page out/compare.html",
    "export": """rarefy export out/rare rare-images
rarefy export out/rare rare.npz --format npz
rarefy export out/rare rare-parquet --format parquet --where 'confidence < 0.6'""",
    "train": """rarefy train mine/train.toml                 all parts, in order: diffusion, classifier, judge
rarefy train classifier mine/train.toml      one part
rarefy train mine/train.toml --device cuda --tensorboard""",
    "bench": "rarefy bench mine/rare.toml --batch 8,16\nrarefy bench --preset adm-imagenet-64 --device cuda",
    "models": "rarefy models\nrarefy models mine/model",
    "push": """rarefy push out/rare org/rare-photos --dry-run
rarefy push out/rare org/rare-photos --private
rarefy push mine/model org/photos-model""",
    "doctor": "rarefy doctor\nrarefy doctor --out s3://bucket/rare --ray",
    "completion": """source <(rarefy completion bash)   this shell; put the line into ~/.bashrc for all
rarefy completion zsh > ~/.zfunc/_rarefy   with fpath+=~/.zfunc before compinit in ~/.zshrc
rarefy completion fish > ~/.config/fish/completions/rarefy.fish
rarefy completion tcsh > ~/.rarefy.csh   then: source ~/.rarefy.csh""",
    "import": """rarefy import diffusers ddpm-butterflies/ --out models/butterflies
rarefy import guided-diffusion --help            another program's flags in full""",
    "import diffusers": """rarefy import diffusers ddpm-butterflies/ --out models/butterflies
rarefy import diffusers ddpm-cifar10/ --class-names classes.txt --out models/cifar10""",
    "import guided-diffusion": """rarefy import guided-diffusion --out models/adm64 \\
  --unet 64x64_diffusion.pt --classifier 64x64_classifier.pt \\
  --flags "--attention_resolutions 32,16,8 --class_cond True --diffusion_steps 1000 --dropout 0.1 \\
           --image_size 64 --learn_sigma True --noise_schedule cosine --num_channels 192 \\
           --num_head_channels 64 --num_res_blocks 3 --resblock_updown True \\
           --use_new_attention_order True --use_fp16 True --use_scale_shift_norm True \\
           --classifier_depth 4" \\
  --class-names imagenet""",
}
GROUPS = {  # the main help's, in the order of the journey; names that are no commands here are left out
    "from your images to a model": ("init", "train", "import", "models"),
    "from a model to a data set": ("plan", "run", "generate", "seal", "select", "audit", "report"),
    "look at it, check it, compare it": ("view", "status", "verify", "compare"),
    "use it and share it": ("export", "push"),
    "this machine and this program": ("doctor", "bench", "completion"),
}
OUT_HELP = "the run's output: a local folder or fsspec URL (s3://, gs://)"
Handler = Callable[[argparse.Namespace], int]


class UsageError(RarefyError):
    """Invalid command-line arguments."""


class Parser(argparse.ArgumentParser):
    """Reports an argument error in one line, like every other error, and suggests what was probably meant."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does it, but an unknown option is an error of the command that does not know it."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            options = [name for name in self._option_string_actions if name.startswith("--")]
            near = near_name(unknown[0].partition("=")[0], options) if unknown[0].startswith("-") else None
            self.error(f"unrecognized arguments: {' '.join(unknown)}" + ("" if near is None else f"; nearest: {near}"))
        return found, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, bad_choice(value, list(action.choices)))


def bad_choice(value: object, choices: Sequence[str]) -> str:
    """What is wrong with a choice, and which one was probably meant."""
    return f"{value!r} is not {one_of(value, choices)}"


class Style(argparse.HelpFormatter):
    """Wraps descriptions at the terminal's width, but keeps the indented lines of examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(
            line
            if line.startswith(" ")
            else textwrap.fill(line, width, initial_indent=indent, subsequent_indent=indent)
            for line in text.splitlines()
        )


def add_command(commands: Any, name: str, handler: Handler, text: str) -> argparse.ArgumentParser:
    """Add a command that has --json and whose help shows its EXAMPLES."""
    description = f"{text[0].upper()}{text[1:]}."
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=description, formatter_class=Style
    )
    add_examples(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(handler=handler, command=parser.prog)
    return parser


def add_examples(parser: argparse.ArgumentParser) -> None:
    """Add the command's EXAMPLES to its help."""
    examples = EXAMPLES[parser.prog.partition(" ")[2]]
    title = "examples:" if len(re.sub(r"\\\n", "", examples).splitlines()) > 1 else "example:"
    parser.epilog = f"{title}\n{textwrap.indent(examples, '  ')}\n"


def add_plugins(command: argparse.ArgumentParser) -> None:
    """Add --allow-plugins."""
    text = "import the code that the manifest or the model names, such as a term of your own; it can do anything"
    command.add_argument("--allow-plugins", action="store_true", help=f"{text} (also: RAREFY_ALLOW_PLUGINS=1)")


def add_compile(group: Any) -> None:
    """Add --compile. group: a command or a group of its arguments."""
    text = "auto: rarefy's kernels and CUDA graphs (default); off: plain PyTorch; full: torch.compile"
    # A copy of rarefy.device.COMPILES, because importing it would slow down --help.
    group.add_argument("--compile", choices=("auto", "off", "full"), default="auto", help=text)


def allow_plugins(arguments: argparse.Namespace) -> bool:
    """Whether the command or the environment allows it."""
    from rarefy.plugins import allowed_by_environment

    return allowed_by_environment() or arguments.allow_plugins


def print_result(arguments: argparse.Namespace, result: object, text: str) -> int:
    """Print the text, or with --json the result: strict JSON, in which numbers that are not finite are null."""
    if arguments.json:
        print(json.dumps(_finite(result), indent=1, allow_nan=False), file=arguments.stdout)
    else:
        print(text)
    return OK


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value
