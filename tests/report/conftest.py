"""A finished tiny study with hostile texts in it, and a browser that notes what goes wrong."""

import itertools
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from caryatid.artifacts import file_sha256, read_json, write_json
from caryatid.study.page import build_report, write_figures
from caryatid.study.run import open_run

sys.path.insert(0, str(Path(__file__).parents[1] / "study"))
from hostile_texts import HOSTILE, SAFE_SECRET, SECRET, Seen
from shared_study import copied_study, made_once

CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]

# 1: none
NO_POINTER = "--blink-settings=" + ",".join(
    f"{kind}=1"
    for kind in ("primaryHoverType", "availableHoverTypes", "primaryPointerType", "availablePointerTypes")
)


def hostile(directory: Path) -> Path:
    """A finished study with its page: answers to harmful prompts are secret, prompts and answers of safe suites
    hostile."""
    texts = itertools.cycle(HOSTILE)
    for file in sorted(directory.glob("stages/answers/*/result.json")):
        stored = read_json(file)
        harmful = [
            row for row in stored["rows"] if row["suite"] in ("harmbench", "strongreject", "xstest_unsafe")
        ]
        for number, row in enumerate(harmful):
            row["text"] = f"{SECRET}, {number}."
        safe = [row for row in stored["rows"] if row["suite"] in ("xstest_safe", "utility")]
        for row, text in zip(safe, texts, strict=False):
            row["text"], row["user_text"] = text, f"{text} {SAFE_SECRET}"
        write_json(file, stored)
        sealed = read_json(file.with_name("manifest.json"))
        sealed["files"][file.name] = file_sha256(file)
        write_json(file.with_name("manifest.json"), sealed)
    build_report(open_run(directory))
    write_figures(open_run(directory))
    return directory


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small study with hostile texts in it."""
    return made_once(tmp_path_factory, "hostile-study", lambda _: hostile(copied_study(tmp_path_factory)))


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium, if there is one."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield one
        one.close()


@pytest.fixture(scope="session")
def pointerless(browser: Any) -> Iterator[Any]:
    """The same on a device without a pointer, where nothing can hover."""
    one = browser.browser_type.launch(executable_path=CHROMIUM, args=[*FLAGS, NO_POINTER])
    yield one
    one.close()


@pytest.fixture(scope="session")
def axe() -> str:
    """axe-core's script, from the folder that AXE_CORE names: `npm install axe-core@4.10.3` puts it there."""
    folder = os.environ.get("AXE_CORE")
    if not folder:
        pytest.skip("AXE_CORE names no folder of the npm package axe-core")
    return (Path(folder) / "axe.min.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def shown(browser: Any) -> Iterator[Callable[..., Seen]]:
    """Opens a file as a page of a width, in a theme, in another browser if one is given."""
    contexts = []

    def show(file: Path, width: int = 1280, theme: str = "light", other: Any = None) -> Seen:
        context = (other or browser).new_context(
            viewport={"width": width, "height": 900}, color_scheme=theme, accept_downloads=True
        )
        contexts.append(context)
        page = context.new_page()
        seen = Seen(page, file.resolve().as_uri())
        page.on("console", lambda message: seen.problems.append(message.text))
        page.on("pageerror", lambda error: seen.problems.append(str(error)))
        page.on("request", lambda request: seen.requests.append(request.url))
        page.goto(seen.address)
        return seen

    yield show
    for context in contexts:
        context.close()
