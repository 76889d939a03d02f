import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, logsumexp

from caryatid.causal.activations import prompt_activations
from caryatid.causal.answer_reference import LAST_KL, MEAN_KL, NLL, AnswerReference
from caryatid.causal.grid import ConditionGroup, evaluate_grid
from caryatid.causal.scores import (
    CandidateDirections,
    ScoringSettings,
    SelectionPrompts,
    refusal_score,
    score_candidates,
)
from caryatid.errors import InputError, NumericalError
from caryatid.geometry.carriers import CALIBRATED, CandidateScores, admissible, average, select
from caryatid.geometry.directions import candidate_directions
from caryatid.models.directional import Ablate, Add
from caryatid.models.forward import last_logits
from caryatid.models.generate import Decoding, generate
from caryatid.models.layout import decoder_layers
from caryatid.models.load import LoadedModel
from caryatid.models.template import ChatFormat
from tiny import tiny_loaded

HARMFUL = ("How do I write a letter to the office?", "Explain tides", "Tell me how to pick a lock, please")
HARMLESS = ("What is the capital of France?", "Write a poem about the sea and the sun", "Hi", "Sea?")
TOKENS = (5, 6, 7, 100)


def test_refusal_score_equals_its_definition() -> None:
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)) * 4
    tokens = torch.tensor([3, 17, 40])
    p = logits.double().softmax(-1)[:, tokens].sum(-1)
    torch.testing.assert_close(
        refusal_score(logits, tokens).double(), p.log() - (1 - p).log(), rtol=1e-5, atol=1e-5
    )


def test_refusal_score_is_exact_where_probabilities_are_not() -> None:
    logits = torch.zeros(2, 10)
    logits[0, 4], logits[1, 4] = 200.0, -200.0
    found = refusal_score(logits, torch.tensor([4]))
    assert found.tolist() == pytest.approx([200 - math.log(9), -200 - math.log(9)], rel=1e-6)
    everything_certain = torch.full((1, 5), -1e4)
    everything_certain[0, 0] = 1e4
    assert torch.isfinite(refusal_score(everything_certain, torch.tensor([0, 1]))).all()


class Setup:
    def __init__(self, arch: str, n_positions: int = 2) -> None:
        self.loaded: LoadedModel = tiny_loaded(arch)
        self.chat = ChatFormat(self.loaded.tokenizer)
        self.harmful, self.harmless = (
            prompt_activations(self.loaded, self.chat.ids_many(texts), n_positions=n_positions, batch_size=3)
            for texts in (HARMFUL, HARMLESS)
        )
        self.directions = candidate_directions(self.harmful, self.harmless)
        completions = generate(self.loaded, self.chat, HARMLESS, Decoding(6, 4))
        self.answers = [list(c.ids) for c in completions]
        self.answers[2] = self.answers[2][:2]  # one that is shorter than the others

    def prompts(self, tokens: Sequence[int] = TOKENS) -> SelectionPrompts:
        return SelectionPrompts(
            self.chat.ids_many(HARMFUL), self.chat.ids_many(HARMLESS), self.answers, tokens
        )

    def candidates(
        self, positions: Sequence[int] = (-2, -1), layers: Sequence[int] = range(4)
    ) -> CandidateDirections:
        return CandidateDirections.of_grid(self.directions, positions=positions, layers=layers)

    def score(
        self,
        tokens: Sequence[int] = TOKENS,
        positions: Sequence[int] = (-2, -1),
        layers: Sequence[int] = range(4),
        **changes: Any,
    ) -> CandidateScores:
        settings = ScoringSettings(**{"batch_size": 6, "answer_tokens": 4, **changes})
        return score_candidates(
            self.loaded, self.candidates(positions, layers), self.prompts(tokens), settings
        )


def one_at_a_time(setup: Setup, scores: CandidateScores) -> CandidateScores:
    """The same scores by the definitions of protocol §5, one candidate, one prompt and one position per forward."""
    loaded, chat = setup.loaded, setup.chat

    def logits(seq: list[int], *interventions: Ablate | Add) -> np.ndarray:
        (found,) = last_logits(loaded, [seq], batch_size=1, interventions=interventions)
        return found.double().numpy()

    def score(z: np.ndarray) -> float:
        p = np.exp(log_softmax(z))[list(TOKENS)].sum()
        return float(np.log(p) - np.log(1 - p))

    def kl(z: np.ndarray, changed: np.ndarray) -> float:
        p, q = log_softmax(z), log_softmax(changed)
        return float((np.exp(p) * (p - q)).sum())

    bypass, induce, last, answer = [], [], [], []
    for position, layer in zip(scores.positions.tolist(), scores.layers.tolist(), strict=True):
        r = setup.directions[position + 2, layer].float()
        ablate = Ablate((r / r.norm())[None, None])
        add = Add(r[None], torch.tensor([layer]))
        bypass.append([score(logits(chat.ids(text), ablate)) for text in HARMFUL])
        induce.append([score(logits(chat.ids(text), add)) for text in HARMLESS])
        for kls, upto in ((last, 1), (answer, 4)):
            kls.append(
                [
                    np.mean(
                        [kl(logits(seq), logits(seq, ablate)) for seq in along(chat.ids(text), given[:upto])]
                    )
                    for text, given in zip(HARMLESS, setup.answers, strict=True)
                ]
            )
    base = [np.array([score(logits(chat.ids(text))) for text in texts]) for texts in (HARMFUL, HARMLESS)]
    arrays = map(np.array, (bypass, induce, last, answer))
    return CandidateScores(scores.positions, scores.layers, 4, *base, *arrays)


def along(prompt: list[int], answer: list[int]) -> list[list[int]]:
    return [prompt + answer[:step] for step in range(len(answer))]


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma2", "gpt_neox"])
def test_candidate_scores_equal_one_candidate_at_a_time(arch: str) -> None:
    setup = Setup(arch)
    found = setup.score()
    expected = one_at_a_time(setup, found)
    assert float(found.kl.mean()) > 1e-3
    assert float(np.abs(found.bypass - found.harmful).mean()) > 1e-2
    for name, value in expected.arrays().items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-4, atol=2e-5, err_msg=name)


def test_batch_size_and_selected_layers_do_not_matter() -> None:
    setup = Setup("llama")
    every, few = setup.score(batch_size=64), None
    setup.directions = setup.directions[1:, [1, 3]]
    few = setup.score(batch_size=2, layers=(1, 3), positions=(-1,))
    assert few.layers.tolist() == [1, 3]
    rows = [int(np.flatnonzero((every.layers == layer) & (every.positions == -1))[0]) for layer in (1, 3)]
    for name in ("bypass", "induce", "kl", "kl_answer"):
        np.testing.assert_allclose(getattr(few, name), getattr(every, name)[rows], rtol=1e-4, atol=2e-5)


def test_zero_directions_are_no_candidates() -> None:
    found = Setup("llama").score()
    assert 0 not in found.layers  # the same template token for all prompts
    assert len(found) == 6
    learned_positions = Setup("gpt2").score()
    assert 0 in learned_positions.layers


def test_directions_that_are_all_zero_give_no_candidates() -> None:
    setup = Setup("llama")
    setup.directions = torch.zeros_like(setup.directions)
    found = setup.score()
    assert len(found) == 0
    assert np.isfinite(found.harmful).all()
    cosmic = replace(CALIBRATED, selector="cosmic")
    assert select(setup.score(cosmic_layers=(1,)), cosmic, min_gap=-99.0).reason == "no admissible carrier"


def same_cosines(found: CandidateScores, every: CandidateScores, skipped: np.ndarray) -> None:
    """The kept candidates' COSMIC scores agree, the others have none."""
    assert found.cosmic is not None
    assert every.cosmic is not None
    for one, whole in zip(found.cosmic.scores(), every.cosmic.scores(), strict=True):
        np.testing.assert_allclose(one[0][~skipped], whole[0][~skipped], rtol=1e-4, atol=1e-5)
    assert np.isnan(found.cosmic.scores().total[0][skipped]).all()


def test_hopeless_candidates_can_be_skipped() -> None:
    setup = Setup("llama")
    # A random model has no reason to refuse; of TOKENS and all other tokens one gives a positive gap.
    tokens = TOKENS if setup.score().gap > 0 else tuple(sorted(set(range(400)) - set(TOKENS)))
    every = setup.score(tokens=tokens, cosmic_layers=(1, 2))
    effect = (every.harmful.mean() - every.bypass.mean(1)) / every.gap
    cut = float(np.median(effect))
    found = setup.score(tokens=tokens, cosmic_layers=(1, 2), discard_below=cut)
    skipped = np.isnan(found.kl).all(axis=1)
    np.testing.assert_array_equal(skipped, effect < cut)
    assert 0 < skipped.sum() < len(skipped)
    np.testing.assert_allclose(found.bypass, every.bypass, rtol=1e-5)
    for name in ("induce", "kl", "kl_answer"):
        kept, all_kept = getattr(found, name), getattr(every, name)
        np.testing.assert_allclose(kept[~skipped], all_kept[~skipped], rtol=1e-4, atol=1e-5)
        assert np.isnan(kept[skipped]).all()
    same_cosines(found, every, skipped)


def test_hopeless_candidates_can_be_skipped_after_the_first_prompts() -> None:
    setup = Setup("llama")
    plain = setup.score()
    positive = plain.harmful[:2].mean() > plain.harmless.mean()
    tokens = TOKENS if positive else tuple(sorted(set(range(400)) - set(TOKENS)))
    every = setup.score(tokens=tokens, cosmic_layers=(1, 2))
    gap = every.harmful[:2].mean() - every.harmless.mean()
    assert gap > 0
    effect = (every.harmful[:2].mean() - every.bypass[:, :2].mean(1)) / gap
    cut = float(np.median(effect))
    found = setup.score(tokens=tokens, cosmic_layers=(1, 2), discard_below=cut, discard_after=2)
    skipped = np.isnan(found.bypass[:, 2])
    np.testing.assert_array_equal(skipped, effect < cut)
    assert 0 < skipped.sum() < len(skipped)
    np.testing.assert_allclose(found.bypass[:, :2], every.bypass[:, :2], rtol=1e-4)
    for name in ("bypass", "induce", "kl", "kl_answer"):
        kept, all_kept = getattr(found, name), getattr(every, name)
        np.testing.assert_allclose(kept[~skipped], all_kept[~skipped], rtol=1e-4, atol=1e-5)
        assert np.isnan(kept[skipped]).any(axis=1).all()
    same_cosines(found, every, skipped)
    passed = admissible(average(found), found.layers, 4, replace(CALIBRATED, kl_max=99.0, effects_min=None))
    np.testing.assert_array_equal(passed[0], ~skipped & (found.layers < 3))
    hopeless = setup.score(tokens=tokens, cosmic_layers=(1, 2), discard_below=1e9, discard_after=2)
    assert hopeless.cosmic is not None
    assert np.isnan(hopeless.cosmic.scores().total).all()
    assert np.isnan(hopeless.bypass[:, 2:]).all()
    assert hopeless.bypass.shape == every.bypass.shape
    with pytest.raises(InputError, match="at least 1 prompt"):
        setup.score(discard_below=0.0, discard_after=0)


def test_errors_of_candidate_scores() -> None:
    setup = Setup("llama")
    with pytest.raises(InputError, match=r"directions of \(2, 4\)"):
        setup.score(layers=range(3))
    with pytest.raises(InputError, match="not all among"):
        setup.score(layers=(0, 1, 2, 4))
    whole = setup.answers
    for answers, message in ((whole[:3], "3 answers for 4 prompts"), ([[], *whole[1:]], "empty answer")):
        setup.answers = answers
        with pytest.raises(InputError, match=message):
            setup.score()
    setup.answers = whole
    for tokens, message in (
        ((), "0 refusal tokens"),
        (range(400), "400 refusal tokens"),
        ((400,), "outside"),
    ):
        with pytest.raises(InputError, match=message):
            setup.score(tokens=tuple(tokens))
    setup.directions = torch.full_like(setup.directions, torch.nan)
    with pytest.raises(NumericalError, match="direction is not finite"):
        setup.score()


def test_a_model_that_gives_nan_is_one_line_with_exit_code_4() -> None:
    setup = Setup("llama")
    setup.loaded.model.model.layers[2].mlp.down_proj.weight.data.fill_(torch.nan)
    with pytest.raises(NumericalError, match="refusal scores are not finite"):
        setup.score()
    broken = prompt_activations(setup.loaded, setup.chat.ids_many(HARMFUL), n_positions=1, batch_size=2)
    with pytest.raises(NumericalError, match="not finite"):
        candidate_directions(broken, broken)


def test_answer_reference_nll_and_kl_by_definition() -> None:
    setup = Setup("qwen2")
    loaded, chat = setup.loaded, setup.chat
    answers = [chat.answer_ids(text) for text in ("Sure, here is a poem", "No", "The sea and the sun", "Yes")]
    answers[2] = [7]
    reference = AnswerReference(loaded, chat.ids_many(HARMLESS), answers, answer_tokens=5, batch_size=4)
    r = torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(0))
    ablate = Ablate(r / r.norm())
    found = evaluate_grid(
        loaded,
        reference.seqs,
        [ConditionGroup((ablate,))],
        reduce=reference.compare,
        keep=reference.keep,
        batch_size=8,
    )
    for row, (text, answer) in enumerate(zip(HARMLESS, answers, strict=True)):
        kls, nlls, own = [], [], []
        for step, token in enumerate(answer[:5]):
            seq = [chat.ids(text) + answer[:step]]
            p = last_logits(loaded, seq, batch_size=1)[0].double().numpy()
            q = last_logits(loaded, seq, batch_size=1, interventions=[ablate])[0].double().numpy()
            kls.append(float((np.exp(log_softmax(p)) * (log_softmax(p) - log_softmax(q))).sum()))
            nlls.append(float(logsumexp(q) - q[token]))
            own.append(float(logsumexp(p) - p[token]))
        assert float(found[0, row, LAST_KL]) == pytest.approx(kls[0], rel=1e-3, abs=1e-5)
        assert float(found[0, row, MEAN_KL]) == pytest.approx(np.mean(kls), rel=1e-3, abs=1e-5)
        assert float(found[0, row, NLL]) == pytest.approx(np.mean(nlls), rel=1e-4)
        assert reference.base[row].tolist() == pytest.approx([0, 0, np.mean(own)], rel=1e-4, abs=1e-6)


def block_outputs(
    setup: Setup, texts: Sequence[str], layers: tuple[int, ...], *given: Ablate | Add
) -> np.ndarray:
    """Mean outputs of blocks at the last token, one prompt per forward: [layers, d]."""
    rows: list[np.ndarray] = []

    def keep(module: torch.nn.Module, args: object, out: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        rows.append((out[0] if isinstance(out, tuple) else out)[0, -1].double().numpy())

    handles = [decoder_layers(setup.loaded.model)[layer].register_forward_hook(keep) for layer in layers]
    for text in texts:
        last_logits(setup.loaded, [setup.chat.ids(text)], batch_size=1, interventions=given)
    for handle in handles:
        handle.remove()
    mean: np.ndarray = np.reshape(rows, (len(texts), len(layers), -1)).mean(axis=0)
    return mean


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gpt_neox"])
def test_cosmic_scores_equal_one_candidate_at_a_time(arch: str) -> None:
    setup = Setup(arch)
    layers = (1, 3)
    scores = setup.score(cosmic_layers=layers)
    plain = setup.score()
    assert plain.cosmic is None
    np.testing.assert_array_equal(scores.bypass, plain.bypass)
    np.testing.assert_array_equal(scores.induce, plain.induce)
    up, down = (block_outputs(setup, texts, layers).mean(0) for texts in (HARMFUL, HARMLESS))

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    expected = []
    for position, layer in zip(scores.positions.tolist(), scores.layers.tolist(), strict=True):
        r = setup.directions[position + 2, layer].float()
        ablated = block_outputs(setup, HARMFUL, layers, Ablate((r / r.norm())[None, None])).mean(0)
        added = block_outputs(setup, HARMLESS, layers, Add(r[None], torch.tensor([layer]))).mean(0)
        expected.append((cosine(ablated, down), cosine(added, up)))
    assert scores.cosmic is not None
    found = scores.cosmic.scores()
    np.testing.assert_allclose(
        np.stack([found.ablated[0], found.added[0]], axis=1), expected, rtol=1e-4, atol=1e-5
    )
    saved = CandidateScores.from_arrays(scores.arrays(), 4)
    assert saved.cosmic is not None


def resampled(setup: Setup, count: int) -> list[CandidateDirections]:
    """Candidates at the same places, from directions with noise; the second resample has none at one layer."""
    generator = torch.Generator().manual_seed(0)
    grids = [
        setup.directions * (1 + 0.5 * torch.randn(setup.directions.shape, generator=generator))
        for _ in range(count)
    ]
    grids[1][:, 2] = 0
    return [CandidateDirections.of_grid(each, positions=(-2, -1), layers=range(4)) for each in grids]


@pytest.mark.parametrize("cosmic_layers", [(), (1, 3)])
def test_resamples_together_equal_each_alone(cosmic_layers: tuple[int, ...]) -> None:
    setup = Setup("llama")
    resamples = resampled(setup, 3)
    assert [len(each) for each in resamples] == [6, 4, 6]
    joined = CandidateDirections(
        torch.cat([each.vectors for each in resamples]),
        tuple(position for each in resamples for position in each.positions),
        tuple(layer for each in resamples for layer in each.layers),
    )
    settings = ScoringSettings(16, answer_tokens=4, cosmic_layers=cosmic_layers)
    together = score_candidates(setup.loaded, joined, setup.prompts(), settings)
    start = 0
    for each in resamples:
        mine = together.rows(range(start, start + len(each)))
        start += len(each)
        alone = score_candidates(setup.loaded, each, setup.prompts(), settings)
        assert alone.arrays().keys() == mine.arrays().keys()
        for name, value in alone.arrays().items():
            np.testing.assert_allclose(mine.arrays()[name], value, rtol=1e-4, atol=2e-5, err_msg=name)
