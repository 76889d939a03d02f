"""C-AdvUL: training under perturbed embeddings, toward the refusal and away from the target (arXiv 2405.15589)."""

import math

from torch import Tensor

from ..attacks.embedding import embedding_scale
from ..models.layout import hidden_size
from .losses import sft_loss
from .perturb import EMBEDDING, Deltas, Site, attack_latents, perturbed, twice
from .robust_losses import capped_away, capped_toward
from .settings import R2D2Settings
from .terms import Terms, my_share, token_count
from .trainee import DrawnCases, Trainee


def cat_terms(trainee: Trainee, drawn: DrawnCases, _settings: R2D2Settings) -> Terms:
    """The attack lowers the target's cross-entropy; both terms are then taken under what it found."""
    settings = trainee.settings.cat
    away_rows, away_weight = my_share(trainee.ranks, drawn.away)
    toward_rows, toward_weight = my_share(trainee.ranks, drawn.toward)
    tokens, run = token_count([*drawn.toward, *drawn.away]), settings.steps * token_count(drawn.away)
    if not away_rows:
        return Terms(None, {"toward": 0.0, "away": 0.0}, tokens, run, run)
    model = trainee.loaded.model
    vocabulary = int(model.config.get_text_config().vocab_size)
    length = embedding_scale(model.get_input_embeddings(), vocabulary, trainee.loaded.device).length
    radius = settings.radius * length
    site = Site(radius, settings.rate * radius / math.sqrt(hidden_size(model)))

    def target(deltas: Deltas) -> tuple[Tensor, int]:
        with perturbed(model, deltas):
            out = trainee.forward(away_rows)
        return sft_loss(out.logits, out.targets), out.tokens

    found = attack_latents(trainee, away_rows, {EMBEDDING: site}, target, settings.steps, signed=True)
    with perturbed(model, twice(found.deltas)):
        both = trainee.forward([*away_rows, *toward_rows])
    split = sum(both.lengths[: len(away_rows)])
    away = capped_away(sft_loss(both.logits[:split], both.targets[:split]), settings.away_cutoff)
    toward = capped_toward(sft_loss(both.logits[split:], both.targets[split:]), settings.toward_cutoff)
    away, toward = away * away_weight, toward * toward_weight
    total = settings.toward_weight * toward + settings.away_weight * away
    values = {"toward": float(toward.detach()), "away": float(away.detach())}
    return Terms(total, values, tokens, run, run, found.loss)
