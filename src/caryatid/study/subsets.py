"""Which evaluation prompts are used where fewer are wanted than a set holds."""

from ..behaviour.outcomes import judged_prompts
from ..data.prompts import Prompt
from ..data.study_prompts import StudyPrompts


def judged_requests(sets: StudyPrompts, count: int) -> list[Prompt]:
    """Harmful requests that a refusal judge can be asked about: copyright rows are left out."""
    return judged_prompts(sets.harmbench)[:count]
