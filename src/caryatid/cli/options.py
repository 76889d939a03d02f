"""Options that several commands share."""

from typing import TYPE_CHECKING, get_args

import typer

if TYPE_CHECKING:
    from ..behaviour.judges.base import JudgeSpec
    from ..data.study_prompts import Source as PromptSource

_MODEL = "Hub id, folder, .gguf file, adapter folder, `embedded`, or `embedded-refusing`."
Model = typer.Option(..., "--model", "-m", help=_MODEL)
ModelArgument = typer.Argument(help=_MODEL)
Source = typer.Option("auto", "--source", help="auto, benchmarks or embedded.")
Json = typer.Option(False, "--json", help="Print the result as JSON.")
Dtype = typer.Option(None, "--dtype", help="float32, bfloat16 or float16.")
Device = typer.Option(
    None, "--device", help="cpu, cuda, xpu or mps; default: the first accelerator that there is."
)
Revision = typer.Option(None, "--revision", help="Revision of a hub model.")
System = typer.Option(
    None, "--system", help="System message; '' sends an empty one; default: the template's own."
)
Thinking = typer.Option(
    "off",
    "--thinking",
    help="off: answers follow an empty thought; strip: the model thinks, what follows is judged; keep: as it is.",
)
TemplateArg = typer.Option(
    [], "--template-arg", metavar="KEY=VALUE", help="A variable of the chat template; repeatable."
)
Date = typer.Option(
    None,
    "--date",
    metavar="YYYY-MM-DD",
    help="What a template that asks for today gets; default: a fixed day.",
)
Template = typer.Option(
    None, "--template", help="Name of one of the tokenizer's templates, or a .jinja file."
)
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
JudgeModel = typer.Option(
    None,
    "--judge-model",
    help="The judge's model: hub id, folder, or name at an endpoint; default: the published one.",
)
BaseUrl = typer.Option(None, "--base-url", help="OpenAI-compatible endpoint; default: OPENAI_BASE_URL.")
JudgeSet = typer.Option(
    [],
    "--judge-set",
    metavar="KEY=VALUE",
    help="Further settings of the judge: prompt (pipeline, model_card), copyright_hashes, batch_size, prompt_price, "
    "completion_price (per million tokens); may be repeated.",
)
PerMinute = typer.Option(0.0, "--per-minute", min=0.0, help="Requests a minute to an endpoint; 0: no limit.")


def judge_spec(
    name: str, more: list[str], per_minute: float, **given: str | None
) -> "JudgeSpec":  # given: model, base_url, dtype, device
    """The judge that a command's options name; `more` are its KEY=VALUE settings.

    Raises:
        UsageError: a setting that is unknown, or of a wrong value.
    """
    from pydantic import ValidationError

    from ..behaviour.judges.base import JudgeSpec
    from ..config.part import model_of
    from ..errors import UsageError

    pairs = dict(one.partition("=")[::2] for one in more)
    values = {"name": name, "per_minute": per_minute, **given, **pairs}
    try:
        return JudgeSpec(**dict(model_of(JudgeSpec).model_validate(values)))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UsageError(f"{key}: {first['msg']}", where="--judge-set", remedy="See --help.") from error


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
