"""Candidate suffixes: which tokens may be used, and one substitution per candidate.

GCG (arXiv 2307.15043): at every position of the suffix take the top-k tokens along the negative gradient, then
draw candidates that replace one token each, spread evenly over the positions. Here the substitutions are drawn
without replacement as one long order, so that "the first `width` that survive the round trip" does not depend on
how many are checked at a time.
"""

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
import transformers
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TokenizersBackend

from ...errors import InputError, NumericalError
from ...paths import cache_dir

# Contexts in which a token must survive decode → encode at least once. A tokenizer that marks word starts (▁)
# reproduces a word's continuation only after other text, a byte-level one reproduces "!" only away from another "!".
_CONTEXTS = ("", "!", "a")
_FILTER_VERSION = 1  # raised when the rule changes, so that kept filters are not read


class TokenFilter(NamedTuple):
    """Which tokens a suffix may hold.

    Attributes:
        allowed: printable ASCII, not special, reproduced by decode → encode.
        spaced: those of `allowed` whose text begins with a space.
    """

    allowed: Bool[Tensor, "vocab"]
    spaced: Bool[Tensor, "vocab"]

    def mask(self, vocabulary: int, positions: int, first_spaced: bool) -> Bool[Tensor, "positions vocab"]:
        """Allowed tokens per suffix position, padded to the model's `vocabulary` (rows without a token are out).

        With `first_spaced` the first position takes only tokens that begin with a space: there the token also
        holds the one space between the behaviour and the suffix.
        """
        rows = torch.zeros(positions, max(vocabulary, len(self.allowed)), dtype=torch.bool)
        rows[:, : len(self.allowed)] = self.allowed
        if first_spaced:
            rows[0, : len(self.spaced)] = self.spaced
        return rows[:, :vocabulary]


def _plain_backend(tokenizer: PreTrainedTokenizerBase, methods: Sequence[str]) -> Tokenizer | None:
    """The Rust tokenizer, where asking it directly gives what `methods` of the wrapper around it give."""
    if not isinstance(tokenizer, TokenizersBackend):
        return None
    own = any(getattr(type(tokenizer), name) is not getattr(TokenizersBackend, name) for name in methods)
    backend = tokenizer.backend_tokenizer
    as_called = backend.encode_special_tokens == tokenizer.split_special_tokens
    return backend if not own and as_called and backend.truncation is backend.padding is None else None


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts that are already templated: special tokens are recognised, none are added."""
    if not texts:
        return []
    if backend := _plain_backend(tokenizer, ("__call__", "_encode_plus")):
        return [found.ids for found in backend.encode_batch_fast(list(texts), add_special_tokens=False)]
    batch = tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False
    )
    ids: list[list[int]] = batch["input_ids"]
    return ids


def decode_ids(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]]) -> list[str]:
    """Texts of token rows, special tokens written out, no clean-up of spaces."""
    lists = [list(row) for row in rows]
    if backend := _plain_backend(tokenizer, ("batch_decode", "decode", "_decode")):
        return backend.decode_batch(lists, skip_special_tokens=False)
    return tokenizer.batch_decode(lists, skip_special_tokens=False, clean_up_tokenization_spaces=False)


_FILTERS: WeakKeyDictionary[PreTrainedTokenizerBase, TokenFilter] = WeakKeyDictionary()


def allowed_token_ids(tokenizer: PreTrainedTokenizerBase) -> TokenFilter:
    """The token filter of a tokenizer, computed once per tokenizer object and kept in the cache folder.

    A token's text is what it adds after an exclamation mark, so that a word-start marker counts as its space.

    Raises:
        InputError: the tokenizer has no allowed token.
    """
    if (known := _FILTERS.get(tokenizer)) is not None:
        return known
    file = _filter_file(tokenizer)
    found = _read_filter(file, len(tokenizer)) if file else None
    if found is None:
        found = _token_filter(tokenizer)
        if file:
            _keep_filter(file, found)
    _FILTERS[tokenizer] = found
    return found


_MASKS: WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple[int, int, bool, torch.device], Tensor]] = (
    WeakKeyDictionary()
)


def allowed_mask(
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: int,
    positions: int,
    first_spaced: bool,
    device: torch.device,
) -> Bool[Tensor, "positions vocab"]:
    """`TokenFilter.mask` of a tokenizer on a device; made once, as it is the same at every step. Not to be changed."""
    known = _MASKS.setdefault(tokenizer, {})
    key = (vocabulary, positions, first_spaced, device)
    if key not in known:
        known[key] = allowed_token_ids(tokenizer).mask(vocabulary, positions, first_spaced).to(device)
    return known[key]


def _filter_file(tokenizer: PreTrainedTokenizerBase) -> Path | None:
    """Cache path keyed by every input of the filter; None for a tokenizer that cannot be serialised."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    special = sorted({*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()})
    content = f"{_FILTER_VERSION}\n{transformers.__version__}\n{special}\n{backend.to_str()}"
    name = hashlib.sha256(content.encode()).hexdigest()
    return cache_dir() / "token-filters" / f"{name}.safetensors"


def _read_filter(file: Path, vocabulary: int) -> TokenFilter | None:
    try:
        kept = load_file(file)
        found = TokenFilter(kept["allowed"], kept["spaced"])
    except (OSError, KeyError, SafetensorError):
        return None  # absent, or damaged: computed again and written anew
    return found if len(found.allowed) == len(found.spaced) == vocabulary else None


def _keep_filter(file: Path, found: TokenFilter) -> None:
    """Write the filter to the cache, atomically; if that fails, the next process computes it again."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as partial:
            partial.write(save({"allowed": found.allowed, "spaced": found.spaced}))
        Path(partial.name).replace(file)
    except OSError:
        return


def _token_filter(tokenizer: PreTrainedTokenizerBase) -> TokenFilter:
    vocabulary = len(tokenizer)
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    ids = [token for token in range(vocabulary) if token not in special]
    anchor = encode_texts(tokenizer, ["!"])[0]
    start = len(decode_ids(tokenizer, [anchor])[0])
    pieces = [text[start:] for text in decode_ids(tokenizer, [[*anchor, token] for token in ids])]
    pairs = [(t, p) for t, p in zip(ids, pieces, strict=True) if p and p.isascii() and p.isprintable()]
    stable: set[int] = set()
    for context in _CONTEXTS:
        open_pairs = [(token, piece) for token, piece in pairs if token not in stable]
        before = encode_texts(tokenizer, [context])[0] if context else []
        again = encode_texts(tokenizer, [context + piece for _, piece in open_pairs])
        stable.update(
            token for (token, _), row in zip(open_pairs, again, strict=True) if row == [*before, token]
        )
    allowed, spaced = torch.zeros(vocabulary, dtype=torch.bool), torch.zeros(vocabulary, dtype=torch.bool)
    for token, piece in pairs:
        allowed[token] = token in stable
        spaced[token] = token in stable and piece.startswith(" ")
    if not allowed.any():
        raise InputError("the tokenizer has no printable ASCII token", where="GCG token filter")
    return TokenFilter(allowed, spaced)


class TopTokens(NamedTuple):
    """Best substitutions per position, best first; `valid` is False where fewer than k tokens are allowed."""

    ids: Int[Tensor, "positions k"]
    valid: Bool[Tensor, "positions k"]


def topk_substitutions(
    gradient: Float[Tensor, "positions vocab"],
    suffix_ids: Int[Tensor, "positions"],
    allowed: Bool[Tensor, "positions vocab"],
    top_k: int,
) -> TopTokens:
    """The `top_k` allowed tokens along the negative gradient at each position, the present token excluded.

    Args:
        gradient: of the target loss with respect to the one-hot suffix.
        suffix_ids: the present suffix.
        allowed: tokens that may stand at each position.

    Raises:
        NumericalError: the gradient is not finite.
    """
    if not bool(torch.isfinite(gradient).all()):
        raise NumericalError("the suffix gradient is not finite", where="GCG")
    usable = allowed.to(gradient.device, copy=True)
    usable.scatter_(1, suffix_ids.to(gradient.device).unsqueeze(1), False)
    scores = (-gradient).masked_fill(~usable, float("-inf"))
    best = scores.topk(min(top_k, gradient.shape[1]), dim=1)
    return TopTokens(best.indices.cpu(), torch.isfinite(best.values).cpu())


class Substitutions(NamedTuple):
    """Candidates in the order in which they are tried: candidate j puts `tokens[j]` at `positions[j]`."""

    positions: Int[Tensor, "candidates"]
    tokens: Int[Tensor, "candidates"]

    def apply(self, suffix_ids: Int[Tensor, "length"]) -> Int[Tensor, "candidates length"]:
        """The suffixes after one substitution each."""
        rows = suffix_ids.cpu().repeat(len(self.positions), 1)
        rows[torch.arange(len(rows)), self.positions] = self.tokens
        return rows


def ordered_substitutions(top: TopTokens, generator: torch.Generator) -> Substitutions:
    """All substitutions of the top tokens in random order: round after round, each position once per round.

    Any leading part is spread evenly over the positions, its tokens are uniform among each position's top k, and no
    substitution occurs twice. Always consumes the same amount of randomness: two draws of `positions x k`.
    """
    positions, k = top.ids.shape
    token_order = torch.rand((positions, k), generator=generator).argsort(dim=1)
    position_order = torch.rand((k, positions), generator=generator).argsort(dim=1)
    shuffled, valid = top.ids.gather(1, token_order), top.valid.gather(1, token_order)
    rounds = torch.arange(k).unsqueeze(1)
    tokens = shuffled.T[rounds, position_order].flatten()
    keep = valid.T[rounds, position_order].flatten()
    return Substitutions(position_order.flatten()[keep], tokens[keep])
