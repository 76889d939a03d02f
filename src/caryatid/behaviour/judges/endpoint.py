"""Models behind an OpenAI-compatible endpoint: what they are asked, retries, and what it costs.

Base URL and key come from the environment (`OPENAI_BASE_URL`, `OPENAI_API_KEY`), never from a file. Endpoints differ in
the parameters that they take; what one complains about is asked once more without it, or under its other name.
"""

import contextlib
import json
import math
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

from ...errors import DataMissingError, UsageError

HIDDEN_TOKENS = 4096
"""Further tokens where `max_completion_tokens` is the limit: it counts a model's hidden reasoning, too."""

LONGEST_WAIT = 60.0
FILTERED = "held back by the endpoint's content filter"

Turn = Mapping[str, str]


class Question(NamedTuple):
    """What a model is asked.

    Attributes:
        turns: as a chat. prompt: the same as a text to complete, for a model that was trained on such; None: chat only.
        limit: tokens of the reply. one_token: only the first token of a completion is read.
    """

    turns: Sequence[Turn]
    prompt: str | None = None
    limit: int = 512
    one_token: bool = False


class Reply(NamedTuple):
    """What came back.

    Attributes:
        text: the reply. first: log-probabilities of the likeliest first tokens by their text, where the endpoint gives
            them. trouble: why there is no whole reply; empty where there is.
    """

    text: str
    first: Mapping[str, float] = {}
    trouble: str = ""


@dataclass
class Usage:
    """What was asked of an endpoint.

    Attributes:
        requests: answered ones. prompt_tokens, completion_tokens: as the endpoint counts them. retried: attempts that
            failed and were repeated. unscored: how many answers stayed without verdict, by reason.
        prices: per million prompt and completion tokens. notes: what the endpoint would not do.
    """

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    retried: int = 0
    unscored: Counter[str] = field(default_factory=Counter)
    prices: tuple[float, float] = (0.0, 0.0)
    notes: tuple[str, ...] = ()

    @property
    def cost(self) -> float:
        """In the currency of the prices."""
        return (self.prompt_tokens * self.prices[0] + self.completion_tokens * self.prices[1]) / 1e6

    def __str__(self) -> str:
        parts = [
            f"{self.requests} requests answered, {self.retried} attempts repeated",
            f"{self.prompt_tokens} prompt and {self.completion_tokens} completion tokens",
            *([f"cost {self.cost:.4f}"] if any(self.prices) else []),
            *(f"{count} unscored: {reason}" for reason, count in sorted(self.unscored.items())),
            *self.notes,
        ]
        return "; ".join(parts)


class RateLimit:
    """At most so many requests a minute, evenly spaced, over all threads. 0: no limit."""

    def __init__(
        self,
        per_minute: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._gap = 60 / per_minute if per_minute else 0.0
        self._clock, self._sleep = clock, sleep
        self._lock, self._next = threading.Lock(), -math.inf

    def wait(self) -> None:
        """Return when the next request may be sent."""
        with self._lock:
            start = max(self._clock(), self._next)
            self._next = start + self._gap
        self._sleep(max(0.0, start - self._clock()))


class Dialect(NamedTuple):
    """Which parameters an endpoint takes; it is found out from its complaints, each change once.

    Attributes:
        limit: name of the token limit in a chat. temperature: whether it can be set (to 0). completions: whether texts
            are completed. logprobs: likeliest tokens that are asked for; 0: none.
    """

    limit: str = "max_tokens"
    temperature: bool = True
    completions: bool = True
    logprobs: int = 20

    def after(self, complaint: str) -> "Dialect | None":
        """The dialect to try after a complaint; None if it is about nothing that can be changed."""
        if "logprobs" in complaint and self.logprobs:
            return self._replace(logprobs=5 if self.logprobs > 5 else 0)
        if re.search(r"\bmax_tokens\b", complaint) and self.limit == "max_tokens":
            return self._replace(limit="max_completion_tokens")
        if "temperature" in complaint and self.temperature:
            return self._replace(temperature=False)
        return None

    def parameters(self, question: Question, logprobs: bool) -> dict[str, Any]:
        """The request's parameters beside the model."""
        completed = self.completions and question.prompt is not None
        found: dict[str, Any] = {"temperature": 0} if self.temperature else {}
        if completed:
            found |= {"prompt": question.prompt, "max_tokens": 1 if question.one_token else question.limit}
            return found | ({"logprobs": self.logprobs} if logprobs and self.logprobs else {})
        hidden = HIDDEN_TOKENS if self.limit == "max_completion_tokens" else 0
        found |= {"messages": list(question.turns), self.limit: question.limit + hidden}
        return found | (
            {"logprobs": True, "top_logprobs": self.logprobs} if logprobs and self.logprobs else {}
        )


class Endpoint:
    """A model behind an OpenAI-compatible API.

    Args:
        model: its name there. base_url: default `OPENAI_BASE_URL`. retries: attempts after the first where it is busy
            (429), fails (5xx), cannot be reached or sends no JSON, with doubling waiting times or its `Retry-After`.
        per_minute: requests a minute, 0 = no limit. workers: requests under way at once. prices: per million prompt and
            completion tokens.

    Raises:
        DataMissingError: the `openai` client is not installed. UsageError: no key in the environment.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        retries: int = 5,
        per_minute: float = 0.0,
        workers: int = 8,
        prices: tuple[float, float] = (0.0, 0.0),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise DataMissingError(
                "the openai client is not installed", where="judge", remedy="pip install 'caryatid[judges]'"
            ) from error
        if not os.environ.get("OPENAI_API_KEY"):
            raise UsageError(
                "no OPENAI_API_KEY in the environment",
                where="judge",
                remedy="Set it (any text for a server without keys), and OPENAI_BASE_URL for your own server.",
            )
        self.model, self.workers, self.retries = model, workers, retries
        self.usage, self.dialect = Usage(prices=prices), Dialect()
        self._client = openai.OpenAI(base_url=base_url, max_retries=0, timeout=120.0)
        self._status, self._unreachable = openai.APIStatusError, openai.APIConnectionError
        self._unreadable = (openai.APIResponseValidationError, json.JSONDecodeError, UnicodeDecodeError)
        self._limit, self._lock, self._sleep = RateLimit(per_minute), threading.Lock(), sleep

    def ask(self, questions: Sequence[Question], logprobs: bool = False) -> list[Reply]:
        """A reply to each question, in order; the first error stops everything.

        Args:
            logprobs: ask for the log-probabilities of the first token.

        Raises:
            UsageError: the endpoint refuses the request, key or model, with its words. DataMissingError: it stays busy
                or broken.
        """
        pool = ThreadPoolExecutor(self.workers)
        try:
            return list(pool.map(lambda one: self._one(one, logprobs), questions))
        finally:
            pool.shutdown(cancel_futures=True)

    def _one(self, question: Question, logprobs: bool) -> Reply:
        failures = 0
        while True:
            self._limit.wait()
            dialect = self.dialect
            try:
                return self._reply(self._request(dialect, question, logprobs), question)
            except self._status as error:
                words = _words(error)
                if _filtered(error):
                    return Reply("", trouble=FILTERED)
                wait = _wait(error)
                if wait is None:
                    self._adapt(dialect, question, error.status_code, words)
                    continue
            except self._unreachable as error:
                words, wait = f"{error} {error.__cause__ or ''}".strip(), 0.0
            except self._unreadable:
                words, wait = "its reply is not JSON of the OpenAI protocol", 0.0
            if failures >= self.retries:
                self._give_up(words)
            with self._lock:
                self.usage.retried += 1
            self._sleep(max(wait, min(8.0, 0.5 * 2**failures)))
            failures += 1

    def _request(self, dialect: Dialect, question: Question, logprobs: bool) -> Any:
        asked = dialect.parameters(question, logprobs)
        api = self._client.completions if "prompt" in asked else self._client.chat.completions
        reply = api.create(model=self.model, **asked)
        if not getattr(reply, "choices", None):  # the client gives what is not JSON as text
            raise json.JSONDecodeError("no choices", "", 0)
        return reply

    def _reply(self, reply: Any, question: Question) -> Reply:
        with self._lock:
            self.usage.requests += 1
            if reply.usage is not None:
                self.usage.prompt_tokens += reply.usage.prompt_tokens or 0
                self.usage.completion_tokens += reply.usage.completion_tokens or 0
        choice = reply.choices[0]
        message = getattr(choice, "message", None)
        text = message.content if message is not None else choice.text
        if choice.finish_reason == "content_filter":
            return Reply("", trouble=FILTERED)
        if choice.finish_reason == "length" and not question.one_token:
            return Reply(text or "", trouble="cut at the token limit")
        if text is None:
            return Reply("", trouble="the model declined")
        return Reply(text, _first(choice))

    def _adapt(self, used: Dialect, question: Question, code: int, words: str) -> None:
        """Change the dialect after a complaint, unless another thread did; else the complaint is the user's."""
        if code in (404, 405, 501) and used.completions and question.prompt is not None:
            changed: Dialect | None = used._replace(completions=False)
        else:
            changed = used.after(words) if code in (400, 422) else None
        if changed is None:
            raise UsageError(
                f"the endpoint refuses ({code}): {words}",
                where=self.model,
                remedy="Check OPENAI_API_KEY, OPENAI_BASE_URL and the model's name."
                if code in (401, 403, 404)
                else "Correct the request; verdicts so far are kept.",
            )
        with self._lock:
            if self.dialect == used:
                self.dialect = changed
                if used.temperature and not changed.temperature:
                    self.usage.notes += ("the endpoint fixes the temperature: verdicts may vary",)

    def _give_up(self, words: str) -> NoReturn:
        raise DataMissingError(
            f"the endpoint gave no answer in {self.retries + 1} attempts: {words}",
            where=self.model,
            remedy="Check OPENAI_BASE_URL and try again: verdicts so far are kept.",
        )


def _words(error: Any) -> str:
    """What the server said, in one line, with the parameter that it names."""
    body = error.body if isinstance(error.body, dict) else {}
    said = str(body.get("message") or error.message or error)
    named = str(body.get("param") or "")
    return " ".join(said.split())[:500] + (f" ({named})" if named and named not in said else "")


def _filtered(error: Any) -> bool:
    """Whether a content filter, not the request's form, was the reason (a 400 at some providers)."""
    body = error.body if isinstance(error.body, dict) else {}
    return error.status_code == 400 and body.get("code") == "content_filter"


def _wait(error: Any) -> float | None:
    """Seconds to wait at least before another attempt; None where another attempt would fail, too."""
    if (error.status_code not in (408, 409, 429) and error.status_code < 500) or error.status_code == 501:
        return None
    with contextlib.suppress(TypeError, ValueError):
        return min(LONGEST_WAIT, max(0.0, float(error.response.headers.get("retry-after"))))
    return 0.0


def _first(choice: Any) -> dict[str, float]:
    """Log-probabilities of the likeliest first tokens, by text; tokens of the same text together."""
    given = choice.logprobs
    listed = getattr(given, "content", None)
    if listed:
        pairs = [(one.token, one.logprob) for one in listed[0].top_logprobs]
    else:
        pairs = list(((getattr(given, "top_logprobs", None) or [{}])[0] or {}).items())
    return {str(token): float(value) for token, value in pairs}
