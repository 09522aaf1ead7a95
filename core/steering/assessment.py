"""What the unsteered model says of steered texts: scores, perplexity, and how far steering moved it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from core.architectures import pads_right
from core.model import LanguageModel, block_output, named_options
from core.steering.generation import Row
from core.steering.intervention import Directions, steered

if TYPE_CHECKING:
    import torch

LOGIT_BYTES = 256 * 2**20
NGRAM = 3


@dataclass(frozen=True)
class Assessment:
    """Of one generated text.

    scores: (tokens, k) every generated token's centred score in the unsteered model
    perplexity: of the text under the unsteered model
    divergence: mean KL divergence in nats of the steered from the unsteered next-token distribution, at the
    positions that predicted the text
    repetition: the share of its NGRAMs of tokens that are repeats of earlier ones
    """

    scores: np.ndarray
    perplexity: float
    divergence: float
    repetition: float


def assess(
    model: LanguageModel, directions: Directions, rows: Sequence[Row], responses: Sequence[Sequence[int]]
) -> list[Assessment]:
    """One unsteered and one steered pass over prompts and responses, a few rows at a time."""
    vocabulary = int(model.module.config.get_text_config().vocab_size)
    longest = max(len(row.prompt) + len(ids) for row, ids in zip(rows, responses, strict=True))
    size = max(1, LOGIT_BYTES // (8 * vocabulary * longest)) if pads_right(model) else 1
    found: list[Assessment] = []
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        found += _assess(model, directions, rows[part], responses[part])
    return found


def _assess(
    model: LanguageModel, directions: Directions, rows: Sequence[Row], responses: Sequence[Sequence[int]]
) -> list[Assessment]:
    import torch

    texts = [[*row.prompt, *ids] for row, ids in zip(rows, responses, strict=True)]
    longest = max(map(len, texts))
    ids = torch.tensor([text + text[-1:] * (longest - len(text)) for text in texts], device=model.device)
    reader, uncached = _ScoreReader(directions, ids.shape), named_options(model.module, use_cache=False)
    with torch.inference_mode():
        with reader.reading(model):
            plain = model.module(ids, **uncached).logits
        if all(row.steering.is_baseline for row in rows):
            moved = plain
        else:
            lengths = [len(row.prompt) for row in rows]
            with steered(model, directions, [row.steering for row in rows], lengths):
                moved = model.module(ids, **uncached).logits
        return [
            _one(plain[i], moved[i], reader.scores[i], len(row.prompt), response)
            for i, (row, response) in enumerate(zip(rows, responses, strict=True))
        ]


def _one(
    plain: torch.Tensor, moved: torch.Tensor, scores: torch.Tensor, start: int, response: Sequence[int]
) -> Assessment:
    import torch

    n = len(response)
    if not n:
        return Assessment(np.zeros((0, scores.shape[1]), np.float32), np.nan, np.nan, 0.0)
    predicting = slice(start - 1, start - 1 + n)
    unsteered = plain[predicting].float().log_softmax(dim=1)
    steered_log = moved[predicting].float().log_softmax(dim=1)
    chosen = unsteered.gather(1, torch.tensor(response, device=plain.device)[:, None])
    divergence = (steered_log.exp() * (steered_log - unsteered)).sum(dim=1).mean()
    return Assessment(
        scores[start : start + n].cpu().numpy(),
        float((-chosen.cpu().double().mean()).exp()),  # Apple's GPUs have no float64
        float(divergence.clamp(min=0)),
        repetition(response),
    )


def repetition(ids: Sequence[int]) -> float:
    """The share of repeats among a text's NGRAMs of tokens.

    >>> repetition([1, 2, 3, 4]), repetition([1] * 12)
    (0.0, 0.9)
    """
    grams = [tuple(ids[i : i + NGRAM]) for i in range(len(ids) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


class _ScoreReader:
    """Sums the tokens' scores (rows, tokens, k) over the blocks while the model runs as a whole."""

    def __init__(self, directions: Directions, shape: torch.Size) -> None:
        import torch

        basis = directions.basis
        self.directions = directions
        parts = torch.from_numpy(basis.directions).view(basis.k, len(directions.blocks), -1)
        self.parts = parts / torch.from_numpy(basis.block_scale)[:, None]
        self.mean = torch.from_numpy(basis.mean).view(len(directions.blocks), -1)
        self.scores = torch.zeros(*shape, basis.k)

    def reading(self, model: LanguageModel) -> Any:
        from contextlib import ExitStack

        stack = ExitStack()
        for place, block in enumerate(self.directions.blocks):
            stack.callback(model.blocks[block].register_forward_hook(self._hook(place)).remove)
        return stack

    def _hook(self, place: int) -> Any:
        def hook(_block: Any, _args: Any, output: Any) -> None:
            hidden = block_output(output)
            part, mean = (tensor[..., place, :].to(hidden.device) for tensor in (self.parts, self.mean))
            self.scores = self.scores.to(hidden.device)
            self.scores += (hidden.float() - mean) @ part.T

        return hook
