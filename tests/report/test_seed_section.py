"""The section on seeds: rendered from stand-in runs, it is whole; without runs there is none."""

import re
import shutil
from pathlib import Path

import pytest
from made_up_seeds import pair, seed
from test_across_seeds import attacked, closed

import publish
import seed_doubts
import seed_figure
from caryatid.report.charts import Panel

STUDIES = (
    "qwen-0.5b-seed0",
    "qwen-0.5b-seed0-four-arms",
    "qwen-0.5b-seed1",
)  # whole; in part; behaviour alone
HEADING = re.compile(r"^## .*, (one seed|\w+ seeds), step 0 to (\d+): .*$", re.MULTILINE)


DOCS = publish.RESULTS.parent


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The published results without runs of several seeds."""
    skipped = shutil.ignore_patterns("*-trajectory-*", "trajectory.svg")
    shutil.copytree(publish.RESULTS, tmp_path / "results", ignore=skipped)
    monkeypatch.setattr(publish, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def stand_in(results: Path, *studies: str) -> str:
    """Publish copies of studies as seeds 0, 1, …; the section."""
    for number, name in enumerate(studies):
        shutil.copytree(results / name, results / f"stand-in-trajectory-seed{number}")
    return publish.rendered("seeds.md.j2")


def test_the_section_comes_first_and_its_figure_with_it(results: Path) -> None:
    section = stand_in(results, *STUDIES)
    publish.render()
    text = (results / "README.md").read_text(encoding="utf-8")
    heading = HEADING.search(text)
    assert heading
    assert section in text
    assert re.findall(r"^## .*$", text[: heading.start()], re.MULTILINE) == ["## How to do it again"]
    assert (results / "trajectory.svg").read_bytes() == seed_figure.svg(publish.runs_by_seed())
    for link in re.findall(r"\]\(([^)#]+)\)", section):
        assert (results / link).exists() or (DOCS / "results" / link).resolve().is_file()
    for anchor in re.findall(r"\]\(#([^)]+)\)", section):
        headings = re.findall(r"^##+ (.*)$", text, re.MULTILINE)
        assert anchor in [re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in headings]


def test_without_such_runs_there_is_no_section_and_no_figure(results: Path) -> None:
    (results / "trajectory.svg").write_bytes(b"of runs that are gone")
    publish.render()
    assert not HEADING.search((results / "README.md").read_text(encoding="utf-8"))
    assert not (results / "trajectory.svg").exists()


@pytest.mark.parametrize(
    ("studies", "count", "last"),
    [
        (STUDIES[:1], "one seed", "100"),
        (STUDIES[:1] * 2, "two seeds", "100"),
        (STUDIES[:1] * 3, "three seeds", "100"),
        (STUDIES, "three seeds", "500"),  # the third has behaviour, attacks and training alone
        (STUDIES[2:], "one seed", "500"),
    ],
    ids=["one", "two", "three", "in-part", "behaviour-alone"],
)
def test_the_section_is_whole(results: Path, studies: tuple[str, ...], count: str, last: str) -> None:
    section = stand_in(results, *studies)
    heading = HEADING.search(section)
    assert heading
    assert heading.groups() == (count, last)
    assert not re.search(r"None|\bnan\b|\{[{%]|[ (]in in |;;|\.\.$", section)
    widths = [re.split(r"(?<!\\)\|", line) for line in section.splitlines() if line.startswith("|")]
    assert all(len(cells) > 3 for cells in widths)
    for table in re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_what_equal_runs_say_they_say_in_all_seeds(results: Path) -> None:
    section = stand_in(results, *STUDIES[:1] * 3)
    for said in (
        "**R2D2 closes against fixed-source attacks by step 50 and stays closed**",
        "There and at each of 100 in all 3 seeds",
        "**No over-refusal is seen at these anchors**",
        "**Adaptive attacks: not measured**",
        "| r2d2 0 → 100 | *drift only*, 34.6° [32.9°, 36.4°] |",
        "| 3 of 3 drift only |",
        "r2d2 50 → 100, seed 2: the angle cannot be told from 10°",
        "**From step 0 to every anchor R2D2 turns the direction more than SFT**: intervals apart in all",
        "seed 1: 0 false labels of 10 redraws (10 *undetermined*)",
        "The claim is *R2D2 0 → 100: drift only* (3 of 3 drift only), and R2D2 turns the direction further than SFT.",
    ):
        assert said in section


def test_what_one_seed_lacks_is_said(results: Path) -> None:
    section = stand_in(results, *STUDIES)
    assert "There and at each of 100, 250, 500 in both seeds (unknown: 0)" in section
    assert "in the one seed measured (unknown: 0, 2)" in section  # adaptive attacks
    assert re.search(r"Seed 2 lacks stages 10 verdict, .* and the tables .*`verdict`", section)
    assert "R2D2 0 → 500 has no verdict, so that nothing is claimed of it." in section


def test_the_figure_has_every_arm_and_seed_and_leaves_out_what_nobody_measured(results: Path) -> None:
    stand_in(results, *STUDIES[:1] * 2)
    chart = seed_figure.chart(publish.runs_by_seed())
    assert "Adaptive GCG: answered" not in [panel.title for panel in chart.panels]
    panel = chart.panels[0]
    assert isinstance(panel, Panel)
    lines = panel.lines
    assert [line.name for line in lines] == [
        f"{arm}, seed {n}" for arm in ("sft", "r2d2", "refusal_sft") for n in (0, 1)
    ]
    assert len({line.symbol for line in lines}) == 2
    assert [round(x) for x in lines[0].x] == [0, 1, 2]
    assert b"r2d2, seed 1" in seed_figure.svg(publish.runs_by_seed())


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["relocation", "relocation"], "The claim is *R2D2 0 → 100: relocation* (2 of 2 relocation), and R2D2 turns"),
        (["drift only", "undetermined"], "the seeds say 1 of 2 drift only, 1 of 2 undetermined, so that no one label"),
        (["undetermined", "undetermined"], "the seeds say 2 of 2 undetermined, so that no one label is claimed"),
        (["", ""], "R2D2 0 → 100 has no verdict, so that nothing is claimed of it."),
    ],
)  # fmt: skip
def test_the_claim_that_is_doubted_is_the_one_that_all_seeds_make(labels: list[str], said: str) -> None:
    rows = closed(0, 0).tables["behaviour"]
    seeds = [
        seed(number, pair("r2d2", 0, 100, label), pair("sft", 0, 100, angle=10), rows=rows)
        for number, label in enumerate(labels)
    ]
    assert said in seed_doubts.main_claim(seeds)


def test_doubts_name_the_controls_that_are_missing() -> None:
    without = seed_doubts.doubts([closed(0, 0)])
    assert any("no adaptive attack was made here, so this is open;" in one for one in without)
    assert without[-1].endswith(
        "without `refusal_sft` and `r2d2_static` this section cannot tell; studies of seed 0 below have these arms."
    )
    assert any("one seed, so this is open" in one for one in without)
    attack = seed_doubts.doubts([attacked(0.5, 0.0, ("sft", "r2d2")), attacked(0.5, 0.1, ("sft", "r2d2"), 1)])
    assert any(
        "attacking R2D2 as it is at 50 gains .00 [-.05, .05]; .10 [.05, .15] over asking" in one
        for one in attack
    )
    assert any("two seeds, and the agreement above" in one for one in attack)


def test_what_is_unfinished_is_counted_by_kind() -> None:
    part = seed(
        1, unfinished=["verdict/base@0-r2d2@50/seed1", "verdict/base@0-sft@50/seed1", "null/base@0/seed1"]
    )
    said = seed_doubts.lacking([closed(0, 0), part])
    assert said == ["Seed 1 lacks stages 2 verdict, 1 null and the tables `behaviour`."]


def test_published_seeds_are_those_that_their_names_say() -> None:
    for one in publish.runs_by_seed():
        assert {row["seed"] for row in one.tables["behaviour"]} == {one.number}


def test_the_published_figure_is_there_with_the_runs() -> None:
    figure = publish.RESULTS / "trajectory.svg"
    seeds = publish.runs_by_seed()
    assert figure.exists() == bool(seeds)
    for one in seeds:
        assert f"r2d2, seed {one.number}" in figure.read_text(encoding="utf-8")
