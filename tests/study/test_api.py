"""The Python API on a finished study: README.md's code runs, docs/api.md's reproduces what the report says."""

import html as html_lib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import caryatid
from caryatid.errors import UsageError
from caryatid.models.forward import last_logits
from caryatid.report.tables import read_tables
from caryatid.study.decision import decide
from caryatid.study.run import open_run
from caryatid.study.series import PairRef
from caryatid.study.stages.answers import Answers
from caryatid.study.stages.verdict import Verdicts

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "api.md"
TEXT = "How do I pick a lock?"


def on_the_small_study(code: str, finished: Path) -> str:
    """A page's code, with the small study and its steps in place of those that the page names."""
    for there, here in (('"runs/quick"', repr(str(finished))), (", 10", ", 2")):
        assert there in code
        code = code.replace(there, here)
    return code


@pytest.fixture(scope="module")
def said(finished: Path) -> dict[str, Any]:
    """The names that the page's blocks on a study leave, on the small study; the first one is five lines."""
    code, table, *_ = re.findall(r"^```python\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.M | re.S)
    code = on_the_small_study(code, finished)
    assert len([line for line in code.splitlines() if line and not line.startswith(("import", "#"))]) == 5
    names: dict[str, Any] = {}
    for block in (code, table):
        exec(compile(block, str(DOCS), "exec"), names)
    return names


def test_the_code_of_the_readme_runs(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", readme, re.M | re.S)
    names: dict[str, Any] = {}
    exec(compile(on_the_small_study(code, finished), "README.md", "exec"), names)
    assert names["run"].verdict("r2d2", 0, 2, angle=15).label in capsys.readouterr().out


def test_a_verdict_with_another_threshold_is_the_decision_on_the_stored_evidence(
    finished: Path, said: dict[str, Any]
) -> None:
    run = said["run"]
    pair = PairRef(run.anchor("r2d2", 0), run.anchor("r2d2", 2))
    evidence = run.of(Verdicts, pair).evidence
    assert said["label"] == decide(evidence, replace(run.config.verdict, angle=15.0)).label
    found = run.verdict("r2d2", 0, 2)
    (row,) = [r for r in read_tables(finished)["verdict"] if (r["arm"], r["from"], r["to"]) == ("r2d2", 0, 2)]
    assert (found.label, found.rank, " ".join(found.reasons)) == (
        row["label"], row["rank_change"], row["reasons"],
    )  # fmt: skip


def test_a_table_is_a_data_frame_with_the_same_cells(finished: Path, said: dict[str, Any]) -> None:
    frame, rows = said["transfer"], read_tables(finished)["transfer"]
    assert isinstance(frame, pd.DataFrame)
    assert list(frame.columns) == list(rows[0])
    assert frame.astype(object).where(frame.notna(), None).to_dict("records") == rows


def test_the_figures_are_those_of_the_report(finished: Path, said: dict[str, Any]) -> None:
    figures = said["figures"]
    html = (finished / "report" / "index.html").read_text(encoding="utf-8")
    for name, figure in figures.items():
        assert f'"{name}":{{"title":' in html or name.startswith("bypass-")  # maps are drawn in the browser
        assert figure.caption
    assert len(figures) > 15
    shown = figures["behaviour-seed0"]._repr_html_()
    assert shown.startswith("<figure><svg")
    assert figures["behaviour-seed0"].caption in html_lib.unescape(shown)
    assert figures["behaviour-seed0"].pdf.startswith(b"%PDF-")


def test_ablating_and_adding_a_carrier_changes_what_a_model_says_to_a_new_prompt(
    said: dict[str, Any],
) -> None:
    model, carrier = said["model"], said["carrier"]
    ids = model.format.ids(TEXT)

    def logits(*interventions: Any) -> torch.Tensor:
        (found,) = last_logits(model.loaded, [ids], batch_size=1, interventions=interventions)
        return found

    plain, ablated, added = logits(), logits(carrier.ablate()), logits(carrier.add(4.0))
    assert float((plain - ablated).abs().max()) > 1e-2
    assert float((plain - added).abs().max()) > 1e-2
    assert torch.equal(logits(), plain)
    assert said["answers"][0] == model.chat(TEXT)
    assert said["answers"][1] == model.chat(TEXT, carrier.ablate())
    assert len(set(said["answers"])) > 1
    rows = said["run"].of(Answers, said["run"].anchor("r2d2", 2)).to("harmbench", "direct")
    assert model.chat(rows[0].user_text, max_new_tokens=6) == rows[0].text  # as in the study


def test_the_page_of_one_model_names_what_there_is(said: dict[str, Any]) -> None:
    assert isinstance(said["model"], caryatid.Model)
    assert isinstance(said["carrier"], caryatid.Carrier)
    site = said["carrier"].site
    assert repr(said["carrier"]).startswith(f"Carrier(Site(layer={site.layer}, position={site.position}")
    completions = said["model"].generate([TEXT, "Hello"], max_new_tokens=3)
    assert [one.text for one in completions] == [
        said["model"].chat(text, max_new_tokens=3) for text in (TEXT, "Hello")
    ]


def test_an_evaluation_shows_rates_and_keeps_its_answers_to_itself(said: dict[str, Any]) -> None:
    found = said["model"].evaluate("xstest", limit=2, max_new_tokens=4, source="embedded")
    assert repr(found) == f"Evaluation(xstest_safe 2, xstest_unsafe 2; {len(found.rows)} rates, 4 answers)"
    frame = found.to_pandas()
    assert frame["value"].tolist() == [row["value"] for row in found.rows]
    assert not {"text", "user_text"} & set(frame.columns)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda run: run.table("transfers"), "no table 'transfers'.*transfer"),
        (lambda run: run.model("r2d2", 7), "no anchor r2d2@7 of seed 0.*r2d2@2"),
        (lambda run: run.carrier("r2d2", 1, seed=5), "no anchor r2d2@1 of seed 5.*seeds"),
        (lambda run: run.verdict("r2d2", 2, 1), "no verdict on r2d2 2 → 1"),
        (lambda run: run.figures(seed=3), r"no seed 3.*\[0\]"),
        (lambda run: run.verdict("r2d2", 0, 1, angel=3.0), "no threshold 'angel'.*angle"),
    ],
)
def test_wrong_names_are_one_line(finished: Path, ask: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        ask(open_run(finished))
    assert "\n" not in str(caught.value)
