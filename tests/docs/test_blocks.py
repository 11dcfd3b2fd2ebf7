"""Every command, snippet and manifest of the pages works, as CONTRIBUTING.md says under "Pages and their tests"."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from doc_blocks import OTHER, PAGES, PARSE, ROOT, TESTED, Block, PageError, find_blocks, inline_code, prose
from doc_commands import ELSEWHERE, check_console, known_options
from doc_toml import check_toml

NAMES = [page.name for page in PAGES]
Enter = Callable[[], Path]


@pytest.fixture(autouse=True)
def threads() -> Any:
    """Commands may change torch's number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_blocks(page: Path, enter_copy: Enter, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = [block for block in find_blocks(page) if block.language in TESTED]
    if not blocks:
        return
    enter_copy()
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks:
        if block.language == "python":
            check_python(block, names)
        elif block.language == "toml":
            check_toml(block)
        else:
            check_console(block)
        capsys.readouterr()


def check_python(block: Block, names: dict[str, Any]) -> None:
    """Run a snippet with the names that the page's earlier ones left, or check that what it imports is there."""
    code = compile("\n" * block.line + block.text, str(block.page), "exec", dont_inherit=True)
    if block.mode == PARSE:
        check_imports(block)
        return
    exec(code, names)


def check_imports(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_languages(page: Path) -> None:
    """Nothing that a reader types hides in a block that no test reads."""
    for block in find_blocks(page):
        assert block.language in (*TESTED, *OTHER), f"{block.where}: {block.language!r} is not a language of our pages"
        typed = re.search(r"(?m)^\s*(\$ |rarefy [a-z]|make [a-z]|pip install|python -m )", block.text)
        assert block.language in TESTED or not typed, f"{block.where}: commands belong in a console block"
    for number, line in prose(page):
        indented = re.match(r" {4,}(\$ |rarefy [a-z]+ |make [a-z]|pip install|python (-m|[a-z/_]+\.py))", line)
        assert not indented, f"{page.name}:{number}: commands belong in a console block, not in an indented one"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_within_sentences(page: Path) -> None:
    """`rarefy COMMAND --option` in a sentence names a command and options that exist; so does `make TARGET`."""
    known, targets = known_options(), re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text())
    for number, code in inline_code(page):
        words = code.split()
        if words[0] == "rarefy" and len(words) > 1 and re.fullmatch("[a-z][a-z-]+", words[1]):
            assert words[1] in known, f"{page.name}:{number}: there is no command {code!r}"
            options = {word.split("=")[0] for word in words[2:] if word.startswith("--")}
            assert options <= known[words[1]], f"{page.name}:{number}: {code!r} has unknown options"
        if words[0] == "make" and len(words) == 2:
            assert words[1] in targets, f"{page.name}:{number}: the Makefile has no {words[1]!r}"


def test_commands_that_do_not_run_here_run_elsewhere() -> None:
    for command in ELSEWHERE.keys() & known_options().keys():
        place = ELSEWHERE[command]
        files = [ROOT / place] if place.endswith(".py") else sorted((ROOT / place).rglob("*.py"))
        assert any(re.search(rf"\b{command}\b", file.read_text()) for file in files), f"{place} has no {command!r}"


def test_rules_need_a_reason(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- test: parse (needs a GPU) -->\n```console\nrarefy models\n```\n\n```toml\na = 1\n```\n")
    assert [(block.mode, block.reason) for block in find_blocks(page)] == [("parse", "needs a GPU"), ("run", "")]
    for rule in ("<!-- test: parse -->", "<!-- test: skip (no time) -->", "<!-- test:parse (x) -->"):
        page.write_text(f"{rule}\n```console\nrarefy models\n```\n")
        with pytest.raises(PageError, match=r"page\.md:1"):
            find_blocks(page)
    page.write_text("<!-- test: parse (needs a GPU) -->\nText.\n```console\nrarefy models\n```\n")
    with pytest.raises(PageError, match="right before its block"):
        find_blocks(page)


@pytest.mark.parametrize(
    "command",
    [
        "rarefy plan manifests/demmo.toml",
        "rarefy run mine/rare.toml --out x --actor-s 2",
        "rarefy run mine/rarest.toml --out x",
        "rarefy train mine/trian.toml",
        "make demmo",
        "pip install 'rarefy[s33]'",
        "python -m benchmarks.step --modell adm-64",
        "python -m benchmarks.stepp",
        "python examples/no_such.py",
        "jobs/submit.sh run --no-such",
        "wget https://example.org",
        "RAY=1 torchrun -m rarefy train none.toml --thread",
        "bash tests/no_such.sh",
    ],
)
def test_wrong_commands_are_noticed(command: str, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(prepared)
    with pytest.raises((PageError, ImportError)):
        check_console(Block(ROOT / "README.md", 1, "console", command))


def test_files_of_a_run(prepared: Path) -> None:
    """Every file of a finished run is in the page's table."""
    page = (ROOT / "docs" / "OUTPUT.md").read_text().split("## Columns")[0]
    out = prepared / "out" / "demo"
    for path in out.rglob("*"):
        name = re.sub(r"\d{6}", "000042", str(path.relative_to(out)))
        known = name in page or any(
            f"`{folder}/`" in page and name.startswith(folder) for folder in ("state/drivers", "logs")
        )
        assert path.is_dir() or known, f"docs/OUTPUT.md does not name {name}"
