"""The study's prompt sets, by role, with what was dropped because two roles shared it."""

from collections.abc import Mapping
from typing import Any

from ...artifacts import StageFolder
from ...data.study_prompts import StudyPrompts
from ...errors import InputError
from ..stage import Stage, register_stage
from ..work import Work

MIN_EXTRACTION = 4  # so that halves have two prompts each (angles corrected for noise)
FILE = "prompts.json"


@register_stage
class Prompts(Stage[StudyPrompts]):
    """No prompt, nor a near-duplicate of one, serves two roles."""

    kind, scope, result = "prompts", "study", StudyPrompts

    def settings(self) -> Mapping[str, Any]:
        facts = self.study.facts
        limits = self.study.settings["prompts"]["limits"]
        return {"source": facts.prompts_source, "sha256": facts.prompts_sha256, "limits": limits}

    def size(self) -> str:
        return f"{self.study.facts.prompts_source} sets"

    def run(self, work: Work) -> StudyPrompts:
        settled = work.session.settled_prompts
        if settled is None:
            raise InputError(
                "the prompts of this run are damaged and their files are gone",
                where=str(work.folder.path),
                remedy="Start anew.",
            )
        for side in ("harmful", "harmless"):
            count = len(getattr(settled, f"extraction_{side}"))
            if count < MIN_EXTRACTION:
                raise InputError(
                    f"at least {MIN_EXTRACTION} extraction prompts of each kind are needed, {count} are {side}",
                    where=f"prompts.limits.extraction_{side}",
                    remedy="Use more.",
                )
        return settled

    def save(self, result: StudyPrompts, folder: StageFolder) -> None:
        folder.write_json(FILE, result.to_json())

    def load(self, folder: StageFolder) -> StudyPrompts:
        return StudyPrompts.from_json(folder.read_json(FILE))

    def summary(self, result: StudyPrompts) -> Mapping[str, Any]:
        return {"source": result.source, "dropped": len(result.dropped)}
