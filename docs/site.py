"""What the documentation site adds to docs/*.md: the start page (README.md) and the command line's reference, made from
the code; and links that lead out of docs/ as plain text, since the site does not hold what they lead to."""

import io
import posixpath
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not in docs/."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=readme))
    files.append(File.generated(config, "cli.md", content=command_line()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links out of docs/ become text."""
    folder = posixpath.dirname(page.file.src_uri)

    def kept(link: re.Match[str]) -> str:
        words, target, _ = link.groups()
        if "://" in target:
            return link.group()
        place = posixpath.normpath(posixpath.join(folder, target))
        return link.group() if files.get_file_from_path(place) else words

    return LINK.sub(kept, markdown)


def command_line() -> str:
    """Every command's help, as a page."""
    from typer.main import get_command

    from caryatid.cli import app

    parts = ["# Command line", "", "Made from the commands' own help."]
    open_groups = [("caryatid", get_command(app))]
    while open_groups:
        name, command = open_groups.pop(0)
        context = command.make_context(name, [], resilient_parsing=True)
        with redirect_stdout(io.StringIO()):
            text = command.get_help(context)
        parts += ["", f"## {name}", "", "```text", text.rstrip(), "```"]
        inner = getattr(command, "commands", {})
        open_groups = [(f"{name} {key}", inner[key]) for key in sorted(inner)] + open_groups
    return "\n".join(parts) + "\n"
