"""Settings of a chat template that change prompts and answers: thinking, variables, the date, which template."""

import datetime as dt
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from ..errors import DataMissingError, InputError, UsageError

Thinking = Literal["off", "strip", "keep"]
DATE = "2024-07-26"  # what Llama 3's templates write where nobody tells them the date
_DIRECTIVES = tuple(f"%-{one}" for one in "dmeHIMSjy") + tuple(
    f"%{one}" for one in "aAwdbBmyYHIpMSfjUWGuVcxXDFTRe"
)
_RESERVED = frozenset(
    {"conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt", "tokenize", "padding"}
    | {"continue_final_message", "truncation", "max_length", "return_tensors", "return_dict", "tokenizer_kwargs"}
    | {"return_assistant_tokens_mask", "strftime_now"}
)  # fmt: skip


@dataclass(frozen=True)
class ChatOptions:
    """How a chat template is filled in.

    Attributes:
        thinking: `off`: the answer follows an empty thought. `strip`: the model thinks, and what follows the thought
            is its answer; positions and targets stand after an empty thought. `keep`: the template as it is, the
            thought is part of the answer. All the same for templates that know no thoughts.
        arguments: variables of the template, as (name, JSON value).
        date: what a template that asks for today gets, YYYY-MM-DD.
        template: name of one of the tokenizer's templates, or a file with another; None: the tokenizer's own.

    Raises:
        UsageError: an unknown way of thinking, not a date, or a variable that is not the template's.
    """

    thinking: Thinking = "off"
    arguments: tuple[tuple[str, Any], ...] = ()
    date: str = DATE
    template: str | None = None

    def __post_init__(self) -> None:
        if self.thinking not in ("off", "strip", "keep"):
            raise UsageError(
                f"unknown way of thinking {self.thinking!r}",
                where="thinking",
                remedy="Use off, strip or keep.",
            )
        try:
            dt.date.fromisoformat(self.date)
        except (ValueError, TypeError) as error:
            raise UsageError(
                f"{self.date!r} is not a date", where="date", remedy="Use YYYY-MM-DD."
            ) from error
        reserved = sorted(name for name, _ in self.arguments if name in _RESERVED or not name.isidentifier())
        if reserved:
            raise UsageError(
                f"{reserved[0]!r} is not a variable of a chat template",
                where="template-arg",
                remedy="Name one that the template reads, such as enable_thinking=false.",
            )

    @classmethod
    def of(
        cls,
        *,
        thinking: str = "off",
        arguments: Mapping[str, Any] | Iterable[str] = (),
        date: str | None = None,
        template: str | None = None,
    ) -> "ChatOptions":
        """From a command line or a configuration.

        Args:
            arguments: a mapping, or texts KEY=VALUE whose values are read as JSON where they are JSON.
        """
        pairs = arguments.items() if isinstance(arguments, Mapping) else map(_pair, arguments)
        ordered = tuple(sorted(dict(pairs).items()))
        return cls(cast(Thinking, thinking), ordered, date or DATE, template)

    @property
    def moment(self) -> dt.datetime:
        """Noon of the date."""
        return dt.datetime.fromisoformat(f"{self.date}T12:00:00")

    def dated(self, template: str) -> str:
        """A template whose `strftime_now`, where it is called, gives the date instead of the clock's.

        transformers makes texts of functions that are passed to a template, hence a macro of that name.
        """
        if "strftime_now" not in template:
            return template
        moment = self.moment
        replaced = "".join(f"|replace('{one}', '{moment.strftime(one)}')" for one in _DIRECTIVES)
        return f"{{% macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}{template}"

    @property
    def identity(self) -> str:
        """A text that stands for these settings; empty for the defaults. A template file counts by its content.

        Raises:
            DataMissingError: the template's file cannot be read.
        """
        if self == ChatOptions():
            return ""
        name = self.template
        if name is not None and is_file(name):
            name = hashlib.sha256(template_text(name).encode()).hexdigest()
        return json.dumps([self.thinking, self.arguments, self.date, name], sort_keys=True)


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(
            f"{text!r} is not KEY=VALUE", where="template-arg", remedy="Write enable_thinking=false."
        )
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def is_file(template: str) -> bool:
    """Whether a template is named by a file rather than by its name in the tokenizer."""
    return template.endswith((".jinja", ".txt", ".j2")) or "/" in template or Path(template).is_file()


def template_text(path: str) -> str:
    """The text of a template's file.

    Raises:
        DataMissingError: it cannot be read.
    """
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataMissingError(
            "this chat template cannot be read", where=path, remedy="Check the path of --template."
        ) from error


def chosen_template(tokenizer: Any, options: ChatOptions, where: str | None = None) -> str:
    """The text of the template that is used.

    Raises:
        InputError: the tokenizer has none, has several and no default, or none of this name.
        DataMissingError: its file cannot be read.
    """
    found: Any = getattr(tokenizer, "chat_template", None)
    where = where or getattr(tokenizer, "name_or_path", "") or None
    if options.template is not None:
        if isinstance(found, dict) and options.template in found:
            return str(found[options.template])
        if is_file(options.template):
            return template_text(options.template)
        names = ", ".join(sorted(found)) if isinstance(found, dict) else "none by name"
        raise InputError(
            f"the tokenizer has no chat template {options.template!r} (it has {names})",
            where=where,
            remedy="Name one of these, or a .jinja file.",
        )
    if isinstance(found, dict):
        if "default" not in found:
            raise InputError(
                f"the tokenizer has several chat templates ({', '.join(sorted(found))}) and no default",
                where=where,
                remedy="Choose one: --template NAME.",
            )
        found = found["default"]
    if not found:
        raise InputError(
            "the tokenizer has no chat template",
            where=where,
            remedy="Give one (--template FILE.jinja), put a chat_template.jinja beside its tokenizer files, or use an "
            "instruction-tuned model.",
        )
    return str(found)
