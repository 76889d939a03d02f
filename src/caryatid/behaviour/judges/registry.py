"""Judges by kind and name; another package adds its own with `register_judge`.

register_judge("my-judge", lambda spec: MyJudge(spec.model), kind="refusal")
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import InputError, UsageError
from ...registry import Registry
from .base import Judge, JudgeSpec, Kind
from .copyright import CopyrightHashes

Opener = Callable[[JudgeSpec], Judge]

REFUSAL_JUDGE = "refusal-rules"
HARM_JUDGE = "harm-features"
"""The judges that are used where none is named: both work offline."""


@dataclass(frozen=True)
class JudgeEntry:
    """A registered judge.

    Attributes:
        kind: what it is asked. name: what it is called in configurations and tables.
        opener: makes it from a specification whose `model` is filled in.
        model: the published model that it asks; None for a judge without one.
    """

    kind: Kind
    name: str
    opener: Opener
    model: str | None = None


_REGISTERED: Registry[tuple[Kind, str], JudgeEntry] = Registry("judge")


def register_judge(name: str, opener: Opener, *, kind: Kind, model: str | None = None) -> None:
    """Make a judge known by a name; see `JudgeEntry`. One name may stand for a judge of each kind.

    Raises:
        ValueError: another judge of this kind has the name.
    """
    _REGISTERED.register((kind, name), JudgeEntry(kind, name, opener, model))


def judge_names(kind: Kind) -> tuple[str, ...]:
    """Names of the registered judges of a kind, in order of registration."""
    return tuple(name for of, name in _REGISTERED if of == kind)


def judge_entry(name: str, kind: Kind) -> JudgeEntry:
    """The registered judge of that kind and name.

    Raises:
        UsageError: there is none.
    """
    if (kind, name) not in _REGISTERED:
        known = ", ".join(judge_names(kind))
        raise UsageError(f"no {kind} judge named {name!r}", remedy=f"Choose from {known}.")
    return _REGISTERED[kind, name]


def open_refusal_judge(spec: JudgeSpec | None = None) -> Judge:
    """A refusal judge, its model loaded; None: the offline one.

    Raises:
        UsageError: no refusal judge of that name, or an endpoint without key. DataMissingError: its model, or the
            `openai` client, is not here. InputError: the model cannot be used.
    """
    return _opened(spec or JudgeSpec(REFUSAL_JUDGE), "refusal")


def open_harm_judge(spec: JudgeSpec | None = None) -> Judge:
    """A harmfulness judge, its model loaded; None: the offline one. Errors as for `open_refusal_judge`."""
    return _opened(spec or JudgeSpec(HARM_JUDGE), "harm")


def open_copyright_hashes(spec: JudgeSpec | None) -> CopyrightHashes | None:
    """The rule for copyright behaviours beside a harmfulness judge; None where the specification names no folder.

    Raises:
        DataMissingError: no such folder, or datasketch or spaCy is not installed.
    """
    return CopyrightHashes(Path(spec.copyright_hashes)) if spec and spec.copyright_hashes else None


def _opened(spec: JudgeSpec, kind: Kind) -> Judge:
    entry = judge_entry(spec.name, kind)
    judge = entry.opener(replace(spec, model=spec.model or entry.model))
    if judge.kind != kind:
        raise InputError(f"a judge of {judge.kind} is registered as one of {kind}", where=spec.name)
    return judge


def _rules(_: JudgeSpec) -> Judge:
    from .rules import RefusalRules

    return RefusalRules()


def _phrases(_: JudgeSpec) -> Judge:
    from .phrases import RefusalPhrases

    return RefusalPhrases()


def _harm_features(_: JudgeSpec) -> Judge:
    from .harm import HarmFeatures

    return HarmFeatures()


def _harmbench(spec: JudgeSpec) -> Judge:
    if spec.base_url:
        from .served import harmbench_form, served

        return served(harmbench_form(spec.name, spec.prompt), spec)
    from .prompted import HarmBenchClassifier, load_judge_model

    return HarmBenchClassifier(spec.name, load_judge_model(spec), spec.batch_size, spec.prompt)


def _strongreject_finetuned(spec: JudgeSpec) -> Judge:
    if spec.base_url:
        from .served import served, strongreject_finetuned_form

        return served(strongreject_finetuned_form(), spec)
    from .prompted import StrongRejectFinetuned, load_judge_model

    return StrongRejectFinetuned(load_judge_model(spec), spec.batch_size)


def _strongreject_rubric(spec: JudgeSpec) -> Judge:
    from .served import served, strongreject_rubric_form

    return served(strongreject_rubric_form(), spec)


def _wildguard(kind: Kind) -> Opener:
    def opened(spec: JudgeSpec) -> Judge:
        if spec.base_url:
            from .served import served, wildguard_form

            return served(wildguard_form(kind), spec)
        from .prompted import WildGuard, load_judge_model

        return WildGuard(load_judge_model(spec), spec.batch_size, kind=kind)

    return opened


def _llama_guard(spec: JudgeSpec) -> Judge:
    if spec.base_url:
        from .served import llama_guard_form, served

        return served(llama_guard_form(), spec)
    from .prompted import LlamaGuard, load_judge_model

    return LlamaGuard(load_judge_model(spec), spec.batch_size)


def _verdict_file(kind: Kind) -> Opener:
    def opened(spec: JudgeSpec) -> Judge:
        from .verdict_file import open_verdict_file

        return open_verdict_file(kind, spec)

    return opened


register_judge(REFUSAL_JUDGE, _rules, kind="refusal")
register_judge("refusal-phrases", _phrases, kind="refusal")
register_judge("wildguard", _wildguard("refusal"), kind="refusal", model="allenai/wildguard")
register_judge(HARM_JUDGE, _harm_features, kind="harm")
register_judge("harmbench-llama2", _harmbench, kind="harm", model="cais/HarmBench-Llama-2-13b-cls")
register_judge("harmbench-mistral", _harmbench, kind="harm", model="cais/HarmBench-Mistral-7b-val-cls")
register_judge(
    "strongreject-finetuned", _strongreject_finetuned, kind="harm", model="qylu4156/strongreject-15k-v1"
)
register_judge("strongreject-rubric", _strongreject_rubric, kind="harm", model="gpt-4o-mini")
register_judge("wildguard", _wildguard("harm"), kind="harm", model="allenai/wildguard")
register_judge("llama-guard", _llama_guard, kind="harm", model="meta-llama/Llama-Guard-3-8B")
register_judge("verdict-file", _verdict_file("refusal"), kind="refusal")
register_judge("verdict-file", _verdict_file("harm"), kind="harm")
