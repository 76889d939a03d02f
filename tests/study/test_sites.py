"""Which carrier's site a row of the causal table names."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from caryatid.study.context import Context

from caryatid.artifacts import RunDirectory
from caryatid.study import tables
from caryatid.study.plan import Plan
from caryatid.study.series import AnchorRef
from caryatid.study.stages import intervene

REF = AnchorRef(0, "sft", 10)
OWN = {"layer": 14, "position": -1, "admissible": True}
START = SimpleNamespace(layer=23, position=-2, admissible=False)


def planned(rows: list[dict[str, Any]]) -> Plan:
    """A plan with one causal stage that holds these rows."""
    stage = SimpleNamespace(manifest=lambda: {"facts": OWN}, read_json=lambda name: rows)
    return cast(
        Plan,
        SimpleNamespace(of_kind=lambda kind: [SimpleNamespace(anchor=REF, stage=lambda run: stage)]),
    )


def test_step_0s_carrier_has_its_own_site_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervene, "find_carrier", lambda context, ref: START)
    rows = [{"control": "carrier"}, {"control": intervene.STEP_0}]
    stored = intervene._at_its_site(cast(Context, None), REF, rows)
    found = tables._causal(cast(RunDirectory, None), planned(stored), "causal")
    places = [(row["layer"], row["position"], row["carrier_admissible"]) for row in found]
    assert places == [(14, -1, True), (23, -2, False)]


def test_without_step_0s_carrier_it_is_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(intervene, "find_carrier")
    assert intervene._at_its_site(cast(Context, None), REF, [{"control": "random"}]) == [
        {"control": "random"}
    ]
