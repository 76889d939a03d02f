"""Names that settings may take."""

from typing import Annotated

from pydantic import AfterValidator

# The prompt sets of a study (data/study_prompts.py gives each its role).
PROMPT_SETS = (
    *("pool", "warmup_harmful", "warmup_harmless", "chat", "chat_heldout"),
    *("extraction_harmful", "extraction_harmless", "selection_harmful", "selection_harmless"),
    *("harmbench", "strongreject", "xstest_safe", "xstest_unsafe", "utility"),
)


def _prompt_set(name: str) -> str:
    if name not in PROMPT_SETS:
        raise ValueError(f"no such prompt set (there are {', '.join(PROMPT_SETS)})")
    return name


PromptSetName = Annotated[str, AfterValidator(_prompt_set)]
