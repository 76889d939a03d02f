"""Harmfulness judges by name, with the model each was published with."""

from collections.abc import Callable
from dataclasses import dataclass

from caryatid.behaviour.judges.base import Judge
from caryatid.behaviour.judges.harm import HarmFeatures
from caryatid.errors import UsageError


@dataclass(frozen=True)
class HarmJudgeSpec:
    """Which harmfulness judge, and through what.

    Attributes:
        name: see `DEFAULT_MODELS`. model: hub id, folder or adapter folder of a judge that is a model, or the model's
            name at an endpoint; None: the published one.
        base_url: of an OpenAI-compatible endpoint, default `OPENAI_BASE_URL`. per_minute: requests, 0 = no limit.
        dtype, device, batch_size: of a judge that is a model.
    """

    name: str = "harm-features"
    model: str | None = None
    base_url: str | None = None
    per_minute: float = 0.0
    dtype: str | None = None
    device: str | None = None
    batch_size: int = 8


DEFAULT_MODELS: dict[str, str | None] = {
    "harm-features": None,
    "harmbench-llama2": "cais/HarmBench-Llama-2-13b-cls",
    "harmbench-mistral": "cais/HarmBench-Mistral-7b-val-cls",
    "strongreject-finetuned": "qylu4156/strongreject-15k-v1",
    "strongreject-rubric": "gpt-4o-mini",
    "wildguard": "allenai/wildguard",
    "llama-guard": "meta-llama/Llama-Guard-3-8B",
}


def open_harm_judge(spec: HarmJudgeSpec) -> Judge:
    """The judge, its model loaded.

    Raises:
        UsageError: no judge of that name, or an endpoint without key. DataMissingError: its model, or the `openai`
            client, is not here. InputError: the model cannot be used.
    """
    if spec.name not in DEFAULT_MODELS:
        raise UsageError(
            f"no harmfulness judge named {spec.name!r}", remedy=f"Choose from {', '.join(DEFAULT_MODELS)}."
        )
    if spec.name == "harm-features":
        return HarmFeatures()
    model = spec.model or str(DEFAULT_MODELS[spec.name])
    if spec.name == "strongreject-rubric":
        from caryatid.behaviour.judges.endpoint import Endpoint, StrongRejectRubric

        return StrongRejectRubric(Endpoint(model, base_url=spec.base_url, per_minute=spec.per_minute))
    return _loaded_judge(spec, model)


def endpoint_usage(judge: Judge) -> str | None:
    """What has been asked of a judge's endpoint, with the tokens it counted; None for judges without one."""
    from caryatid.behaviour.judges.endpoint import StrongRejectRubric

    return str(judge.endpoint.usage) if isinstance(judge, StrongRejectRubric) else None


def _loaded_judge(spec: HarmJudgeSpec, model: str) -> Judge:
    from caryatid.behaviour.judges import prompted
    from caryatid.models.load import load_model

    loaded = load_model(model, dtype=spec.dtype, device=spec.device)
    makers: dict[str, Callable[[], Judge]] = {
        "strongreject-finetuned": lambda: prompted.StrongRejectFinetuned(loaded, spec.batch_size),
        "wildguard": lambda: prompted.WildGuard(loaded, spec.batch_size),
        "llama-guard": lambda: prompted.LlamaGuard(loaded, spec.batch_size),
    }
    if spec.name in makers:
        return makers[spec.name]()
    return prompted.HarmBenchClassifier(spec.name, loaded, spec.batch_size)
