"""A finished study inside the package: packed once from a run directory, copied out by `caryatid demo`.

What is packed: tables, configuration, carriers, verdicts with their evidence, prompts of caryatid's own (those of
benchmarks are blanked), and answers, of which those to harmful prompts are blanked. What is not: weights, activations,
other answers, everything that only a resumed run needs. `caryatid report`, `open_run(…).table`, `.carrier` and
`.verdict` work on the copy as on the run.

    python -m caryatid.study.demo RUN "TITLE"    packs a finished run into the package
"""

import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path
from shutil import copytree
from typing import Any, NamedTuple

from ..artifacts import RunDirectory, StageFolder, read_json, write_bytes, write_json
from ..behaviour.answers import AnswerRow
from ..config import parse_config
from ..data.prompts import Prompt
from ..data.study_prompts import StudyPrompts
from ..errors import UsageError
from ..report.story import SENTENCES
from ..report.tables import read_tables
from .page import HARMFUL_SUITES, build_report
from .plan import Planned, build_plan
from .recorded import Facts
from .run import Run, open_run
from .series import verdict_pairs
from .stage import Study
from .stages.answers import Answered, Answers
from .stages.carrier import ChosenCarrier
from .stages.prompts import Prompts
from .stages.verdict import Verdicts
from .status import PACKED
from .summary import trajectory_lines

ARCHIVE = "demo/run.zip"  # in the package
KEPT = (Prompts, Answers, ChosenCarrier, Verdicts)  # stages
LARGEST = 4 * 2**20  # bytes
BLANK = "·"  # as many of these as a blanked text has characters
OWN = "embedded"  # beginning of the names of caryatid's own prompt sets; those of benchmarks stay where they are
WHEN = (2000, 1, 1, 0, 0, 0)  # of every file in the archive, so that the same run gives the same bytes


class Demo(NamedTuple):
    """A copied study: its folder, the rebuilt page, and what it is."""

    directory: Path
    report: Path
    title: str


def pack(directory: Path, archive: Path, title: str) -> int:
    """Pack a finished run; returns the archive's size in bytes.

    Args:
        title: what the study is, in a sentence; shown by `caryatid demo`.

    Raises:
        UsageError: the run is not finished, or the archive would be larger than 4 MiB.
    """
    run = open_run(directory)
    lacking = [entry.id for entry in run.plan if not _packable(run, entry)]
    if lacking:
        raise UsageError(
            f"{len(lacking)} stages are not done, first {lacking[0]}",
            where=str(directory),
            remedy="Finish the study with `caryatid study run`.",
        )
    with tempfile.TemporaryDirectory() as place:
        copy = RunDirectory(Path(place))
        _copy(run, copy)
        write_json(copy.path / PACKED, {"title": title, "caryatid": run.directory.manifest()["caryatid"]})
        packed = Path(place).with_suffix(".zip")
        try:
            _zip(copy.path, packed)
            content = packed.read_bytes()
        finally:
            packed.unlink(missing_ok=True)
    if len(content) > LARGEST:
        raise UsageError(
            f"{len(content)} bytes, at most {LARGEST} are packed",
            where=str(directory),
            remedy="Pack a study with fewer anchors, seeds or prompts.",
        )
    write_bytes(archive, content)
    return len(content)


def _copy(run: Run, copy: RunDirectory) -> None:
    """What of a run belongs into the archive."""
    copytree(run.path / "tables", copy.path / "tables")
    text = portable_config(run)
    write_bytes(copy.config_path, text.encode())
    manifest = run.directory.manifest()
    note = manifest["facts"]["prompts_note"]
    manifest["facts"]["prompts_note"] = note.partition(" (")[0]  # what follows names folders of one machine
    plan = build_plan(Study(parse_config(text, str(copy.config_path)), run.study.facts))
    manifest["asked"] = {key: plan.study.settings[key] for key in manifest["asked"]}
    manifest["stages"] = {
        entry.id: {"kind": entry.stage.kind, "folder": f"stages/{entry.stage.kind}/{entry.key}"}
        for entry in plan
    }
    write_json(copy.manifest_path, manifest)
    for entry in run.plan:
        if isinstance(entry.stage, KEPT):
            stage: Any = entry.stage
            here, there = entry.folder(run.directory), plan[entry.id].folder(copy)
            there.begin()
            result = stage.load(here)
            stage.save(_blanked(result), there)
            there.finish(_facts(here))


def portable_config(run: Run) -> str:
    """A run's configuration, absolute paths of model and chat reduced to file names."""
    text = run.directory.config_text()
    for path in (run.config.model.spec, run.config.chat.path or ""):
        if Path(path).is_absolute():
            text = text.replace(path, Path(path).name)
    return text


def _packable(run: Run, entry: Planned) -> bool:
    """Whether a stage is finished; of those that are not packed a run that was brought home may lack the files."""
    folder = entry.folder(run.directory)
    return folder.state() == "done" if isinstance(entry.stage, KEPT) else folder.done()


def _blanked(result: Any) -> Any:
    """A result without other people's prompts and without answers to harmful ones, of which the lengths stay."""
    if isinstance(result, Answered):
        return replace(result, rows=tuple(map(_blanked_answer, result.rows)))
    if isinstance(result, StudyPrompts):
        sets = {name: getattr(result, name) for name in result.sets}
        blanked = {
            name: replace(one, prompts=tuple(map(_blanked_prompt, one.prompts))) for name, one in sets.items()
        }
        return replace(result, **blanked)
    return result


def _blanked_answer(row: AnswerRow) -> AnswerRow:
    if row.suite in HARMFUL_SUITES:
        row = replace(row, text=_blank(row.text))
    if row.set_name.startswith(OWN):
        return row
    prompt, sent, context = map(_blank, (row.prompt, row.user_text, row.context))
    return replace(row, prompt=prompt, user_text=sent, context=context)


def _blanked_prompt(prompt: Prompt) -> Prompt:
    if prompt.set_name.startswith(OWN):
        return prompt
    text, context, answer = map(_blank, (prompt.text, prompt.context, prompt.answer))
    return replace(prompt, text=text, context=context, answer=answer, targets=())


def _blank(text: str | None) -> Any:
    """As long a text that says nothing; None stays."""
    return None if text is None else BLANK * len(text)


def _facts(folder: StageFolder) -> dict[str, Any]:
    """A stage's manifest without what `StageFolder.finish` writes."""
    own = ("stage", "key", "inputs", "files")
    return {key: value for key, value in folder.manifest().items() if key not in own}


def _zip(folder: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            info = zipfile.ZipInfo(path.relative_to(folder).as_posix(), WHEN)
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            packed.writestr(info, path.read_bytes())


def packed_run() -> Path:
    """The archive in the package."""
    return Path(str(resources.files("caryatid").joinpath(*ARCHIVE.split("/"))))


def unpack(out: Path, archive: Path | None = None) -> Demo:
    """Copy the packed study to a folder, and make its report from tables and artifacts; no model, no network.

    Args:
        archive: None: the one in the package. A copy of it that is in `out` already stays, and its report is made anew.

    Raises:
        UsageError: `out` holds something else, or cannot be written.
    """
    with zipfile.ZipFile(archive or packed_run()) as packed:
        if not _is_copy(out, packed):
            if out.exists() and (not out.is_dir() or any(out.iterdir())):
                raise UsageError(
                    "output folder holds other files",
                    where=str(out),
                    remedy="Choose a new or empty folder with --out.",
                )
            out.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as place:
                whole = Path(place) / "run"
                packed.extractall(whole)
                whole.replace(out)
    run = open_run(out)
    return Demo(out, build_report(run), str(read_json(out / PACKED)["title"]))


def _is_copy(out: Path, packed: zipfile.ZipFile) -> bool:
    """Whether a folder is a copy of this archive: its manifest and its sentence are."""
    return all(
        (out / name).is_file() and (out / name).read_bytes() == packed.read(name)
        for name in ("manifest.json", PACKED)
    )


def headline(demo: Demo) -> Iterator[str]:
    """What the study is, every arm's trajectory and first-to-last verdict in words, what must be said of them."""
    tables = read_tables(demo.directory)
    yield demo.title
    yield from trajectory_lines(tables["behaviour"])
    rows = tables["verdict"]
    for seed, arm in dict.fromkeys((row["seed"], row["arm"]) for row in rows):
        mine = [row for row in rows if (row["seed"], row["arm"]) == (seed, arm)]
        whole = max(mine, key=lambda row: row["to"] - row["from"])
        said = f"{whole['label']}: {SENTENCES[whole['label']]}"
        yield f"{arm} {whole['from']} → {whole['to']}, seed {seed}: {said}"
    yield from Facts.of_run(RunDirectory(demo.directory)).notes


def next_steps(demo: Demo) -> list[str]:
    """Three things to try."""
    run = open_run(demo.directory)
    pair = max(verdict_pairs(run.config, run.config.seeds[0]), key=lambda pair: pair.b.step - pair.a.step)
    name, steps = demo.directory.as_posix(), f'"{pair.b.arm}", {pair.a.step}, {pair.b.step}'
    python = f"python -c 'import caryatid; print(caryatid.open_run(\"{name}\").verdict({steps}, angle=15))'"
    return [
        "caryatid study plan --preset quick        # such a study on this machine: how long, how much memory",
        "caryatid locate org/model                 # where a model of yours carries refusal",
        f"{python}   # a verdict under another threshold",
    ]


if __name__ == "__main__":
    print(f"{pack(Path(sys.argv[1]), packed_run(), sys.argv[2])} bytes: {packed_run()}")
