"""The reloaded export against the live hook."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from core.errors import BasiscopeError
from core.model import LanguageModel
from core.steering.generation import Generation, Row, Sampling, prompt_ids
from core.steering.intervention import Directions, Steering, steered
from core.steering.prompts import how_encoded, run_prompts
from core.workspace import Run

if TYPE_CHECKING:
    import torch

SAME = 0.05
"""By how much the reloaded logits may differ from those with the same biases set in memory, likewise: both round
alike, so that what is written is recognised where rounding is larger than what steering does."""
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 4, 256, 32
TOLERANCE = {"float32": (0.01, 0.01), "bfloat16": (0.4, 0.1), "float16": (0.2, 0.05)}
"""By how much the reloaded logits may differ from the live hook's, as a share of the change that steering makes
(root mean squares over all tokens and the whole vocabulary), and how much of that change may be lost. Rounding
makes the first but hardly the second; a vector that lost a part loses about that part of the change."""


@dataclass(frozen=True)
class Agreement:
    """The reloaded export against the live hook, over prompts and the live text that follows them.

    difference: largest absolute difference of logits; effect: that of the live hook from the unsteered model;
    share: the difference as a share of the effect, as root mean squares; kept: how much of the effect the export
    has, by least squares; largest: largest logit; same_text: of `prompts` prompts, how many give the same greedy
    text of NEW_TOKENS; surgery: the share that differs from the model with the same biases set in memory, where
    rounding is not negligible and the format is biases
    """

    difference: float
    effect: float
    share: float
    kept: float
    largest: float
    same_text: int
    prompts: int
    dtype: str
    surgery: float | None = None

    @property
    def holds(self) -> bool:
        share, lost = TOLERANCE[self.dtype]
        close = self.share <= share and abs(self.kept - 1) <= lost
        is_written = self.surgery is not None and self.surgery <= SAME
        return (close or is_written) and (self.same_text == self.prompts or self.dtype != "float32")

    def __str__(self) -> str:
        rounding = ""
        if self.surgery is not None:
            rounding = f"; from the same biases set in memory, which round alike, {self.surgery:.1%} of it differs"
        return (
            f"largest logit difference from the live hook {self.difference:.2g}, where steering moves a logit by "
            f"up to {self.effect:.2g} and the largest is {self.largest:.3g}; over all logits {self.kept:.1%} of "
            f"the change is there, and {self.share:.1%} of it differs; same greedy text of {NEW_TOKENS} "
            f"tokens for {self.same_text} of {self.prompts} prompts ({self.dtype}){rounding}"
        )


@dataclass(frozen=True)
class Expected:
    """Per prompt: token ids of prompt and live greedy text, length of the prompt, steered logits on all of it,
    and the change that steering makes to them; `surgery` the logits with the same biases set in memory."""

    texts: list[tuple[int, ...]]
    starts: list[int]
    logits: list[torch.Tensor]
    changes: list[torch.Tensor]
    surgery: list[torch.Tensor] | None = None


def observe(
    model: LanguageModel,
    run: Run,
    directions: Directions,
    steering: Steering,
    surgery: Callable[[], AbstractContextManager[None]] | None = None,
) -> Expected:
    room = min(NEW_TOKENS, (model.context or 10**9) // 2)
    most = min(PROMPT_TOKENS, (model.context or 10**9) - room)
    prompts = [prompt_ids(model, text, *how_encoded(run))[:most] for text in run_prompts(run, PROMPTS)]
    if not prompts:
        raise BasiscopeError(f"Run {run.id}: it has no prompt to compare the export on.")
    texts, logits, changes = [], [], []
    for prompt in prompts:
        generation = Generation(model, directions, [Row(prompt, steering)], Sampling(room)).run()
        if generation.ended[0] == "not a number":
            raise BasiscopeError(f"Strength {steering.strengths[0][1]:g}: {generation.note(0)}.")
        ids = (*prompt, *generation.tokens[0])
        with steered(model, directions, steering):
            moved = _logits(model.module, ids)
        changes.append(moved - _logits(model.module, ids))
        texts.append(ids)
        logits.append(moved)
    biased = None
    if surgery:
        with surgery():
            biased = [_logits(model.module, ids) for ids in texts]
    return Expected(texts, [len(prompt) for prompt in prompts], logits, changes, biased)


def _logits(module: Any, ids: Sequence[int]) -> torch.Tensor:
    """(tokens, vocabulary) float32 on the CPU."""
    import torch

    with torch.inference_mode():
        device = module.get_input_embeddings().weight.device
        return module(torch.tensor([list(ids)], device=device), use_cache=False).logits[0].float().cpu()


def compare_logits(expected: Expected, module: Any, dtype: str) -> Agreement:
    """Teacher-forced on the live text: where every token of it is the reloaded model's first choice, its own
    greedy text is the same."""
    import torch

    difference, squares, along, same, unlike = 0.0, 0.0, 0.0, 0, 0.0
    seen = zip(expected.texts, expected.starts, expected.logits, expected.changes, strict=True)
    for number, (ids, start, logits, change) in enumerate(seen):
        found = _logits(module, ids)
        apart = (found - logits).nan_to_num(nan=np.inf)
        difference = max(difference, float(apart.abs().max()))
        squares += float(apart.square().sum(dtype=torch.float64))
        along += float((apart * change).sum(dtype=torch.float64))
        if expected.surgery:
            unlike += float((found - expected.surgery[number]).square().sum(dtype=torch.float64))
        predicting = slice(start - 1, len(ids))
        same += bool((found[predicting].argmax(dim=1) == logits[predicting].argmax(dim=1)).all())
    largest = max(float(logits.abs().max()) for logits in expected.logits)
    effect = max(float(change.abs().max()) for change in expected.changes)
    whole = sum(float(change.square().sum(dtype=torch.float64)) for change in expected.changes)
    share, kept = (float(np.sqrt(squares / whole)), 1 + along / whole) if whole else (np.inf, 0.0)
    surgery = (float(np.sqrt(unlike / whole)) if whole else np.inf) if expected.surgery else None
    return Agreement(difference, effect, share, kept, largest, same, len(expected.texts), dtype, surgery)
