"""A model's chat template: prompts as token ids, and which of their tokens come after the user's text.

A prompt is rendered once and tokenised once with no added special tokens, so there is never a second BOS.
Everything about positions is found by rendering and tokenising probe texts, never by knowing a template.
"""

from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, NamedTuple

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from ..errors import InputError
from .chat_options import ChatOptions, chosen_template
from .quiet import last_line
from .thoughts import closing, thought_format

_SENTINEL = "QxZuserTextZxQ"
_ANSWER = "QxZanswerTextZxQ"
# Every printable ASCII character, then endings that tokenizers like to merge with what follows.
_EDGES = (
    *map(chr, range(33, 127)),
    *("!!", "...", "?!", ");", '."', "```", "]]", "\n", "\n\n", "!\n", ".\n\n", " ", "  ", "\t", "é", "中", "…", "🙂"),
)  # fmt: skip


class PromptSpans(NamedTuple):
    """A templated prompt and where the user's text is in it: tokens `user_start` … `user_end` − 1.

    A token that holds characters of both the user's text and the template counts as the user's.
    """

    ids: list[int]
    user_start: int
    user_end: int


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Number of leading tokens that all rows have in common."""
    for index, tokens in enumerate(zip(*rows, strict=False)):
        if len(set(tokens)) > 1:
            return index
    return min(map(len, rows))


class ChatFormat:
    """How one tokenizer's chat template turns a user's text into a prompt.

    Args:
        tokenizer: with a chat template.
        system: the system message; None leaves it to the template, "" sends an explicit empty one.
        options: thinking, template variables, date, choice of template.
        where: what errors name.

    Attributes:
        before, after: the template's text before and after the user's text.
        thoughts: how the template writes thoughts; None: it knows none.

    Raises:
        InputError: there is no chat template, it takes no system message, or it does not contain the user's text
            exactly once.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        system: str | None = None,
        options: ChatOptions | None = None,
        where: str | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.system = system
        self.options = options or ChatOptions()
        where = where or getattr(tokenizer, "name_or_path", "") or None
        self._template = chosen_template(tokenizer, self.options, where)
        self.thoughts = thought_format(self._template)
        self._closing, self._in_parts = "", False
        self._in_parts = self._wants_parts()
        if self.thoughts is not None and self.options.thinking != "keep":
            tail = self.text(_SENTINEL).rpartition(_SENTINEL)[2]
            if self.thoughts.open.strip() in tail or not self._switched():
                self._closing = closing(tail, self.thoughts)
        parts = self.text(_SENTINEL).split(_SENTINEL)
        if len(parts) != 2:
            raise InputError(
                f"the chat template contains the user's text {len(parts) - 1} times instead of once",
                where=where,
                remedy="Use another template (--template FILE.jinja).",
            )
        self.before, self.after = parts
        if system and system.strip() not in self.before + self.after:
            raise InputError(
                "the chat template leaves the system message out",
                where=where,
                remedy="Leave it out, put it into the prompts, or use another template (--template FILE.jinja).",
            )

    def _wants_parts(self) -> bool:
        """Whether messages must be lists of parts: vision-language models' templates pass over plain text."""
        try:
            return _SENTINEL not in self.text(_SENTINEL)
        except InputError:
            self._in_parts = True
            with suppress(InputError):
                return _SENTINEL in self.text(_SENTINEL)
            self._in_parts = False
            return False

    def _switched(self) -> bool:
        """Whether the template itself says to the model that it should think, or not (Granite 3.3, LongCat, …)."""
        turns = [{"role": "user", "content": _SENTINEL}]
        return self._render(turns, True) != self._render(turns, True, enable_thinking=True, thinking=True)

    def _render(self, turns: list[dict[str, str]], generation_prompt: bool, **more: bool | None) -> str:
        """The template's text. `more`: variables; None leaves one to the template."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        messages: list[dict[str, Any]] = [*system, *turns]
        if self._in_parts:
            messages = [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in messages]
        # Templates that write today's date must not change overnight. The two names for thinking are those in use.
        # Variables that a template does not read do nothing.
        variables: dict[str, Any] = {"date_string": self.options.moment.strftime("%d %b %Y")}
        if self.options.thinking != "keep":
            variables |= {"enable_thinking": False, "thinking": False}
        variables = {name: value for name, value in {**variables, **more}.items() if value is not None}
        try:
            text = self.tokenizer.apply_chat_template(
                messages,
                chat_template=self.options.dated(self._template),
                tokenize=False,
                add_generation_prompt=generation_prompt,
                **{**variables, **dict(self.options.arguments)},
            )
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise InputError(
                f"the chat template refuses these messages: {last_line(error)}",
                where="chat template",
                remedy="Leave the system message out (--system, or model.system=null in a study)."
                if system
                else "Use another template (--template FILE.jinja).",
            ) from error
        assert isinstance(text, str)
        return text

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def text(self, user: str) -> str:
        """The prompt as text, up to the model's answer; it ends with an empty thought, unless thoughts are kept."""
        return self._render([{"role": "user", "content": user}], generation_prompt=True) + self._closing

    def asked(self, user: str) -> str:
        """The prompt as text from which an answer is generated: `text`, unless the model is left to think."""
        if self.options.thinking != "strip" or self.thoughts is None:
            return self.text(user)
        return self._render([{"role": "user", "content": user}], True, enable_thinking=None, thinking=None)

    @cached_property
    def opens_thought(self) -> bool:
        """Whether the prompt from which answers are generated ends inside a thought."""
        tail = self.asked(_SENTINEL).rpartition(_SENTINEL)[2]
        written = self.thoughts
        return written is not None and written.open.strip() in tail and written.close not in tail

    def ids(self, user: str) -> list[int]:
        """The prompt as token ids; a BOS token is there only if the template writes one."""
        return self._encode(self.text(user))

    def ids_many(self, users: Sequence[str]) -> list[list[int]]:
        """`ids` of each text, in one call of the tokenizer."""
        return self._encode_many([self.text(user) for user in users])

    def asked_ids_many(self, users: Sequence[str]) -> list[list[int]]:
        """Ids of each prompt from which an answer is generated (see `asked`)."""
        return self._encode_many([self.asked(user) for user in users])

    def _encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        return [list(row) for row in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]]

    @cached_property
    def _post_ids(self) -> tuple[int, ...]:
        # Probes that end differently but start alike; a token that merged with some ending is not common to all.
        rows = self.ids_many([f"Q{edge}" for edge in _EDGES])
        n = common_prefix([row[::-1] for row in rows])
        return tuple(rows[0][len(rows[0]) - n :])

    @cached_property
    def prefix_ids(self) -> list[int]:
        """The token ids before the user's text that no user text changes."""
        rows = self.ids_many([f"{edge}Q" for edge in _EDGES])
        return rows[0][: common_prefix(rows)]

    @property
    def n_post(self) -> int:
        """Number of post-instruction tokens: the last tokens of a prompt, after the user's text, that no user text
        changes (tokens that can merge with the end of the user's text are not among them)."""
        return len(self._post_ids)

    @property
    def post_ids(self) -> list[int]:
        """Ids of the post-instruction tokens."""
        return list(self._post_ids)

    @property
    def post_tokens(self) -> list[str]:
        """Texts of the post-instruction tokens."""
        return [str(self.tokenizer.decode([token])) for token in self._post_ids]

    def spans(self, user: str) -> PromptSpans:
        """The prompt's ids and the tokens that hold the user's text.

        Raises:
            InputError: the text is empty (after the trimming that the template does), or the template rewrites it.
        """
        text = self.text(user)
        start, end = len(self.before), len(text) - len(self.after)
        content = text[start:end]
        if not (
            text.startswith(self.before) and text.endswith(self.after) and content in (user, user.strip())
        ):
            raise InputError("the chat template rewrites this text", where=f"{user[:40]!r}")
        if not content:
            raise InputError("the user's text is empty", where="chat template")
        if not self.tokenizer.is_fast:
            ids = self._encode(text)
            return PromptSpans(ids, len(self.prefix_ids), len(ids) - self.n_post)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        held = [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a < end and b > start]
        return PromptSpans(list(encoded["input_ids"]), held[0], held[-1] + 1)

    def _assistant_tail(self) -> str:
        """What the template writes after an assistant's answer."""
        turns = [{"role": "user", "content": _SENTINEL}, {"role": "assistant", "content": _ANSWER}]
        return self._render(turns, generation_prompt=False).rpartition(_ANSWER)[2]

    def _is_marker(self, token: int) -> bool:
        """Whether a token is a control token rather than text."""
        if token in self.tokenizer.all_special_ids:
            return True
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).get(token)
        return added is not None and (added.special or bool(added.content.strip()))

    @cached_property
    def _tail_ids(self) -> tuple[int, ...]:
        """Token ids of what the template writes after an answer, as they are in the whole conversation."""
        prompt, tail = self.text(_SENTINEL), self._assistant_tail()
        full, open_ = self._encode(prompt + _ANSWER + tail), self._encode(prompt + _ANSWER)
        return tuple(full[common_prefix([full, open_]) :])

    @cached_property
    def end_of_turn_ids(self) -> tuple[int, ...]:
        """The tokens with which an assistant's turn ends, up to the first control token.

        When the template ends a turn with no control token: the tokenizer's end-of-text token, or nothing.
        """
        for index, token in enumerate(self._tail_ids):
            if self._is_marker(token):
                return self._tail_ids[: index + 1]
        eos = self.tokenizer.eos_token_id
        return () if eos is None else (int(eos),)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer: the control token of `end_of_turn_ids` and the tokenizer's end-of-text token."""
        eos = self.tokenizer.eos_token_id
        return (
            frozenset([*self.end_of_turn_ids[-1:], *([] if eos is None else [int(eos)])]) - self.thought_ends
        )

    @property
    def thought_ends(self) -> frozenset[int]:
        """Control tokens that end a thought and not the answer, where the model is left to think."""
        if self.options.thinking == "off" or self.thoughts is None or self.thoughts.end is None:
            return frozenset()
        return frozenset(self._encode(self.thoughts.end)[:1])

    def answer_ids(self, answer: str, end_of_turn: bool = True) -> list[int]:
        """Token ids of an assistant's answer as they follow a prompt's ids, by default with its end of turn.

        Tokenised as part of the whole conversation, so that a space or prefix that the template puts before or after
        the answer is kept; on its own when the tokens of the prompt are others there.
        """
        turns = [{"role": "user", "content": _SENTINEL}, {"role": "assistant", "content": answer}]
        prompt, tail = self.text(_SENTINEL), self._assistant_tail()
        whole = self._render(turns, generation_prompt=False)
        if not (whole.startswith(prompt) and whole.endswith(tail)):  # a finished turn is written differently
            whole = prompt + answer + tail
        start, marked = (
            self._encode(prompt),
            self.end_of_turn_ids == self._tail_ids[: len(self.end_of_turn_ids)],
        )
        if end_of_turn and marked and tail:
            ids = self._encode(whole)
            ids = ids[: len(ids) - (len(self._tail_ids) - len(self.end_of_turn_ids))]
            if (
                ids[: len(start)] == start
                and tuple(ids[-len(self.end_of_turn_ids) :]) == self.end_of_turn_ids
            ):
                return ids[len(start) :]
        together = self._encode(whole[: len(whole) - len(tail)] if tail else whole)
        ids = together[len(start) :] if together[: len(start)] == start else self._encode(answer)
        return ids + list(self.end_of_turn_ids) if end_of_turn else ids
