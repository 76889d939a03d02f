"""Which evaluation prompts are used where fewer are wanted than a set holds: a seeded, stratified sample."""

from dataclasses import replace

from ..behaviour.outcomes import judged_prompts
from ..data.prompts import Prompt, PromptSet
from ..data.study_prompts import StudyPrompts


def subset(prompts: PromptSet, count: int, seed: int) -> list[Prompt]:
    """`count` prompts spread over kinds and categories in proportion, drawn with the study's seed; 0: all."""
    return list(prompts.subsample(count, seed).prompts)


def judged_requests(sets: StudyPrompts, count: int, seed: int) -> list[Prompt]:
    """Such a sample of the HarmBench requests that a refusal judge can be asked about (copyright rows left out)."""
    judged = tuple(judged_prompts(sets.harmbench.prompts))
    return subset(replace(sets.harmbench, prompts=judged), count, seed)
