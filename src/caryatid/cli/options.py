"""Options that several commands share."""

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import typer

if TYPE_CHECKING:
    from ..behaviour.judges.base import JudgeSpec
    from ..data.study_prompts import Source as PromptSource
    from ..models.chat_options import ChatOptions
    from ..models.load import LoadedModel

_MODEL = "Hub id, folder, .gguf file, adapter folder, `embedded`, or `embedded-refusing`."
Model = typer.Option(..., "--model", "-m", help=_MODEL)
ModelArgument = typer.Argument(help=_MODEL)
Source = typer.Option("auto", "--source", help="auto, benchmarks or embedded.")
Json = typer.Option(False, "--json", help="Print the result as JSON.")
Track = typer.Option(
    [],
    "--track",
    metavar="NAME",
    help="Send numbers of training and events to a tracker, too: tensorboard, trackio, wandb, … (docs/scale.md); "
    "may be repeated.",
)
Dtype = typer.Option(None, "--dtype", help="float32, bfloat16 or float16.")
Device = typer.Option(
    None, "--device", help="cpu, cuda, xpu or mps; default: the first accelerator that there is."
)
DeviceMap = typer.Option(
    None,
    "--device-map",
    help="Instead of --device, for a model that is too large for one GPU: auto, balanced, balanced_low_0, sequential, "
    "or JSON from modules to devices, as transformers knows them (docs/scale.md).",
)
Revision = typer.Option(None, "--revision", help="Revision of a hub model.")
TrustRemoteCode = typer.Option(False, "--trust-remote-code", help="Run code that comes with the model.")
RefusalJudge = typer.Option(
    "refusal-rules",
    "--judge",
    help="refusal-rules, refusal-phrases (both offline), wildguard or verdict-file.",
)
HarmJudge = typer.Option(
    "harm-features",
    "--judge",
    help="harm-features (offline), harmbench-llama2, harmbench-mistral, strongreject-finetuned, strongreject-rubric, "
    "wildguard, llama-guard or verdict-file.",
)


@dataclass(frozen=True)
class ModelOptions:
    """How a command's model is loaded and talked to."""

    dtype: str | None = Dtype
    device: str | None = Device
    device_map: str | None = DeviceMap
    revision: str | None = Revision
    system: str | None = typer.Option(
        None, "--system", help="System message; '' sends an empty one; default: the template's own."
    )
    thinking: str = typer.Option(
        "off",
        "--thinking",
        help="off: answers follow an empty thought; strip: the model thinks, what follows is judged; keep: as it is.",
    )
    template_arg: list[str] = typer.Option(
        [], "--template-arg", metavar="KEY=VALUE", help="A variable of the chat template; repeatable."
    )
    date: str | None = typer.Option(
        None,
        "--date",
        metavar="YYYY-MM-DD",
        help="What a template that asks for today gets; default: a fixed day.",
    )
    template: str | None = typer.Option(
        None, "--template", help="Name of one of the tokenizer's templates, or a .jinja file."
    )

    def chat(self) -> "ChatOptions":
        """How the chat template is filled in."""
        from ..models.chat_options import ChatOptions

        return ChatOptions.of(
            thinking=self.thinking, arguments=self.template_arg, date=self.date, template=self.template
        )

    def load(self, spec: str, trust_remote_code: bool = False) -> "LoadedModel":
        """The model that `spec` names. Errors as of `load_model`."""
        from ..models.device_map import read_device_map
        from ..models.load import load_model

        return load_model(
            spec,
            dtype=self.dtype,
            device=self.device,
            device_map=read_device_map(self.device_map),
            revision=self.revision,
            trust_remote_code=trust_remote_code,
            options=self.chat(),
        )


@dataclass(frozen=True)
class JudgeOptions:
    """What a judge is reached through, and its settings."""

    judge_model: str | None = typer.Option(
        None,
        "--judge-model",
        help="The judge's model: hub id, folder, or name at an endpoint; default: the published one.",
    )
    base_url: str | None = typer.Option(
        None, "--base-url", help="OpenAI-compatible endpoint; default: OPENAI_BASE_URL."
    )
    per_minute: float = typer.Option(
        0.0, "--per-minute", min=0.0, help="Requests a minute to an endpoint; 0: no limit."
    )
    judge_set: list[str] = typer.Option(
        [],
        "--judge-set",
        metavar="KEY=VALUE",
        help="Further settings of the judge: prompt (pipeline, model_card), copyright_hashes, batch_size, "
        "prompt_price, completion_price (per million tokens); may be repeated.",
    )

    def spec(self, name: str, dtype: str | None, device: str | None) -> "JudgeSpec":
        """The judge of that name; `dtype` and `device` of one that is a model.

        Raises:
            UsageError: a setting that is unknown, or of a wrong value.
        """
        from pydantic import ValidationError

        from ..behaviour.judges.base import JudgeSpec
        from ..config.part import model_of
        from ..errors import UsageError

        values = {
            **{"name": name, "model": self.judge_model, "base_url": self.base_url, "dtype": dtype},
            **{"device": device, "per_minute": self.per_minute},
            **dict(one.partition("=")[::2] for one in self.judge_set),
        }
        try:
            return JudgeSpec(**dict(model_of(JudgeSpec).model_validate(values)))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise UsageError(f"{key}: {first['msg']}", where="--judge-set", remedy="See --help.") from error


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """The command with one option per field of its groups of options (parameters of a dataclass: `ModelOptions`, …)."""
    hints = get_type_hints(command)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    shown: list[Parameter] = []
    for name, parameter in signature(command).parameters.items():
        one = parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=hints[name])
        if name not in groups:
            shown.append(one)
            continue
        types, parts = get_type_hints(groups[name]), fields(groups[name])
        shown += [one.replace(name=p.name, default=p.default, annotation=types[p.name]) for p in parts]

    @wraps(command)
    def run(**given: Any) -> None:
        made = {
            name: kind(**{part.name: given.pop(part.name) for part in fields(kind)})
            for name, kind in groups.items()
        }
        command(**given, **made)

    # What typer reads. The type of functions does not know the attribute that `inspect.signature` documents.
    run.__signature__ = Signature(shown)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return run


def source_named(name: str) -> "PromptSource":
    """Where prompts come from, by its name.

    Raises:
        UsageError: no such source.
    """
    from ..data.study_prompts import Source
    from ..errors import UsageError

    found: tuple[PromptSource, ...] = get_args(Source)
    if name not in found:
        raise UsageError(f"unknown source {name!r}", where="--source", remedy=f"Use {', '.join(found)}.")
    return next(one for one in found if one == name)
