"""Which carrier's site a row of the causal table names."""

from types import SimpleNamespace
from typing import Any, cast

import torch

from caryatid.causal.locate import Carrier, Site
from caryatid.config import StudyConfig
from caryatid.study.run import Run
from caryatid.study.series import AnchorRef
from caryatid.study.stage import Study
from caryatid.study.stages.interventions import STEP_0, Intervened, Interventions
from caryatid.study.tables import causal
from caryatid.study.work import Work

REF = AnchorRef(0, "sft", 10)


def carrier(layer: int, position: int, admissible: bool) -> Carrier:
    return Carrier(Site(layer, position, admissible), torch.ones(4), torch.eye(4)[:1], torch.empty(0, 4))


def test_step_0s_carrier_has_its_own_site_in_the_table() -> None:
    carriers = {REF: carrier(14, -1, True), REF.base: carrier(23, -2, False)}
    work = SimpleNamespace(of=lambda kind, place: SimpleNamespace(carrier=carriers[place]))
    stage = Interventions(Study(StudyConfig(), cast(Any, None)), REF)
    rows = [{"control": "carrier"}, {"control": STEP_0}, {"control": "random"}]
    stored = stage._at_their_sites(cast(Work, work), carriers[REF], rows)
    done = Intervened(tuple(stored), (), (), 3)
    run = cast(Run, SimpleNamespace(each=lambda kind: [(REF, done)]))
    found = list(causal.TABLE.rows(run))
    assert [row["control"] for row in found] == ["carrier", STEP_0, "random"]
    places = [(row["layer"], row["position"], row["carrier_admissible"]) for row in found]
    assert places == [(14, -1, True), (23, -2, False), (14, -1, True)]
    assert {(row["seed"], row["arm"], row["step"]) for row in found} == {(0, "sft", 10)}
