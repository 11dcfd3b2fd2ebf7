"""What the commands of the command line share: exit codes, examples, and how a command is added and prints."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Callable
from typing import Any

from rarefy.errors import RarefyError

OK, USER_ERROR, PROBLEMS = 0, 2, 1
GATES_FAILED, INCOMPLETE_AUDIT = 3, 5
TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h
EXAMPLES = {
    "init": """rarefy init photos/ --out mine
rarefy init photos/train --test photos/test --size 64 --out mine
rarefy init photos/ --out quick --images 20000   a first look at what training gives""",
    "run": """rarefy run mine/rare.toml --out out/rare
rarefy run mine/rare.toml --out s3://bucket/rare --ray-address auto""",
    "plan": "rarefy plan mine/rare.toml\nrarefy plan mine/rare.toml --fill photos/ --to 5000",
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
    "train": """rarefy train mine/train.toml                 all parts, in order: diffusion, classifier, judge
rarefy train classifier mine/train.toml      one part
rarefy train diffusion manifests/train/fashion-mnist-28-diffusion.toml --out out/weights/diffusion""",
    "bench": "rarefy bench mine/rare.toml --batch 8,16\nrarefy bench --preset adm-imagenet-64 --device cuda",
    "models": "rarefy models\nrarefy models mine/model",
}
OUT_HELP = "the run's output: a local folder or fsspec URL (s3://, gs://)"
STYLE = argparse.RawDescriptionHelpFormatter  # keeps the lines of the examples
Handler = Callable[[argparse.Namespace], int]


class UsageError(RarefyError):
    """Invalid command-line arguments."""


def add_command(commands: Any, name: str, handler: Handler, text: str) -> argparse.ArgumentParser:
    """Add a command that has --json and whose help shows its EXAMPLES."""
    examples = "example:" if "\n" not in EXAMPLES[name] else "examples:"
    epilog = f"{examples}\n{textwrap.indent(EXAMPLES[name], '  ')}\n"
    description = f"{text[0].upper()}{text[1:]}."
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=description, epilog=epilog, formatter_class=STYLE
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(handler=handler)
    return parser


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
    """Print the text, or with --json the result."""
    print(json.dumps(result, indent=1) if arguments.json else text)
    return OK
