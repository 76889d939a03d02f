"""Code on pages is run here, beside a tiny model and the study that ships, or it says who runs it, or why nobody.

    <!-- not run: why -->    <!-- run by tests/FILE.py -->    <!-- all run by tests/FILE.py -->  (of the whole page)

Commands are parsed, and what is imported is imported, wherever they stand.
"""

import ast
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
from markdown_it import MarkdownIt
from ruamel.yaml import YAML

from caryatid.cli import app
from caryatid.cli import run as command
from caryatid.config import StudyConfig, load_config
from caryatid.study.demo import unpack
from tiny import save_tiny

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
MARK = re.compile(r"<!-- (not run: |all run by |run by )(.+?) -->")
OPERATORS = {"&&", "||", "|", ";", "&", "(", ")"}
# What stands on a page for what is at hand here.
HERE = {'"embedded"': '"org/model"', '"r2d2", 0, 10,': '"r2d2", 0, 100,'}


class Block(NamedTuple):
    """A block of code; `mark`: what the comment before it says, or the one that holds for its page."""

    page: Path
    line: int
    language: str
    code: str
    mark: tuple[str, str] | None

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    whole = before = None
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type == "html_block":
            found = MARK.search(token.content)
            before = (found[1].strip(" :"), found[2]) if found else None
            whole = before if before and before[0].startswith("all") else whole
        elif token.type == "fence":
            line = (token.map or [0])[0] + 1
            yield Block(page, line, token.info.split(" ")[0], token.content, before or whole)
        if token.type != "html_block":
            before = None


PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
CODE = [block for block in BLOCKS if block.language in ("bash", "python")]
RUN = [block for block in CODE if block.mark is None]


def lines_of(code: str) -> Iterator[list[str]]:
    """The simple commands of a shell block, as words; redirections are left out."""
    for line in code.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(re.sub(r"\d?[<>]+&?\s*\S+", "", line), posix=True, punctuation_chars=True)
        lexer.whitespace_split, lexer.commenters = True, "#"
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word in OPERATORS:
                if words:
                    yield words
                words = []
            else:
                words.append(word)


def caryatid_commands(code: str) -> list[list[str]]:
    """What stands after `caryatid` in its commands, without the variables set before it."""
    found = []
    for words in lines_of(code):
        while words and re.match(r"\w+=", words[0]):
            words = words[1:]
        if words[:1] == ["caryatid"]:
            found.append(words[1:])
    return found


def test_blocks_are_found() -> None:
    assert {block.page.name for block in RUN} >= {
        "README.md",
        "start.md",
        "model.md",
        "judge.md",
        "verdict.md",
    }
    lines = [*lines_of("A=1 caryatid x > y 2>&1 && ls # no\nB=2 \\\n  z")]
    assert lines == [["A=1", "caryatid", "x"], ["ls"], ["B=2", "z"]]


@pytest.mark.parametrize("block", [b for b in CODE if b.language == "bash"], ids=lambda b: b.place)
def test_every_command_is_one(block: Block) -> None:
    for words in caryatid_commands(block.code):
        found: Any = typer.main.get_command(app)
        name = "caryatid"
        while words and words[0] in getattr(found, "commands", {}):
            name, found, words = f"{name} {words[0]}", found.commands[words[0]], words[1:]
        if not hasattr(found, "commands"):
            with found.make_context(name, words) as context:  # parses, and runs nothing
                assert context.params
        else:  # the command alone, or an option of it
            assert not words or words[0].startswith("-"), f"{block.place}: no command {name} {words[0]}"


@pytest.mark.parametrize("block", [b for b in CODE if b.language == "python"], ids=lambda b: b.place)
def test_python_compiles_and_imports_what_there_is(block: Block) -> None:
    imports = [node for node in ast.parse(block.code).body if isinstance(node, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(imports, []), block.place, "exec"), {})


@pytest.mark.parametrize("block", [b for b in CODE if b.mark], ids=lambda b: b.place)
def test_marks_are_true(block: Block) -> None:
    assert block.mark is not None
    kind, words = block.mark
    tests = re.findall(r"tests/[\w./]*\w", words)
    for test in tests:
        assert (ROOT / test).exists(), f"{block.place}: no {test}"
    if kind != "not run":
        assert block.page.name in (ROOT / tests[0]).read_text(encoding="utf-8")


@pytest.mark.parametrize("block", [b for b in RUN if b.language == "bash"], ids=lambda b: b.place)
def test_blocks_that_run_hold_commands_of_caryatid_only(block: Block) -> None:
    others = [words for words in lines_of(block.code) if words[0] != "caryatid"]
    assert not others, "mark it: <!-- not run: why -->"
    assert ">" not in block.code


def configurations() -> list[Block]:
    """Blocks of YAML with the keys of a study; a page all of whose blocks another test runs is its business."""
    keys = {"extends", *StudyConfig.model_fields}
    found = [b for b in BLOCKS if b.language == "yaml" and b.mark is None]
    return [b for b in found if isinstance(y := YAML(typ="safe").load(b.code), dict) and set(y) <= keys]


@pytest.mark.parametrize("block", configurations(), ids=lambda b: b.place)
def test_configurations_are_valid(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(block.code, encoding="utf-8")
    load_config(file=file)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a tiny model and finished studies by the names that pages use; no network, no browser."""
    place = tmp_path_factory.mktemp("desk")
    save_tiny(place / "org" / "model")
    study = unpack(place / "runs" / "quick").directory
    for name in ("seed0", "seed1"):
        shutil.copytree(study, place / "runs" / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("CARYATID_CACHE", str(place / "cache"))
        patch.setenv("BROWSER", "true")
        for name in ("CARYATID_DATA", "DISPLAY", "WAYLAND_DISPLAY"):
            patch.delenv(name, raising=False)
        yield place


@pytest.mark.parametrize("page", sorted({b.page for b in RUN}), ids=lambda page: page.name)
def test_the_blocks_of_a_page_run_in_order(page: Path, desk: Path) -> None:
    names: dict[str, Any] = {}
    for block in blocks_of(page):
        code = block.code
        for there, here in HERE.items():
            code = code.replace(there, here)
        if block.language == "csv":  # what the page's commands read
            (desk / "answers.csv").write_text(code, encoding="utf-8")
        elif block.mark is None and block.language == "bash":
            for words in caryatid_commands(code):
                assert command(words) == 0, f"{block.place}: {words}"
        elif block.mark is None and block.language == "python":
            exec(compile(code, block.place, "exec"), names)


def test_every_question_was_asked_somewhere() -> None:
    _, *questions = re.split(r"^### ", (DOCS / "faq.md").read_text(encoding="utf-8"), flags=re.M)
    assert len(questions) >= 15
    tracker = re.compile(
        r"\[(?:[\w.-]+/[\w.-]+ )?#(\d+)\]\(https://github\.com/[\w.-]+/[\w.-]+/(?:issues|pull)/(\d+)\)"
    )
    for question in questions:
        links = tracker.findall(question)
        assert links, question.partition("\n")[0]
        assert all(shown == linked for shown, linked in links), question.partition("\n")[0]
