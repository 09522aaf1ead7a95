"""The reloaded export against the live hook."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core.activations import Progress, silent
from core.errors import BasiscopeError
from core.model import LanguageModel, named_options
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
PIECE = 32
"""So many tokens' logits are compared at a time."""
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
    """Per prompt: token ids of prompt and live greedy text, and the length of the prompt. The logits on all of it,
    (tokens, vocabulary) float32, lie in `folder`: steered, not steered, and where `has_surgery` with the same
    biases set in memory."""

    texts: list[tuple[int, ...]]
    starts: list[int]
    folder: Path
    has_surgery: bool

    def keep(self, name: str, number: int, logits: torch.Tensor) -> None:
        np.save(self.folder / f"{name}{number}.npy", logits.numpy())

    def pieces(self, name: str, number: int) -> Iterator[torch.Tensor]:
        """What was kept, PIECE tokens at a time."""
        import torch

        whole = np.load(self.folder / f"{name}{number}.npy", mmap_mode="r")
        for start in range(0, len(whole), PIECE):
            yield torch.from_numpy(np.array(whole[start : start + PIECE]))


def observe(
    model: LanguageModel,
    run: Run,
    directions: Directions,
    steering: Steering,
    folder: Path,
    surgery: Callable[[], AbstractContextManager[None]] | None = None,
    progress: Progress = silent,
) -> Expected:
    """The live hook on prompts of the run; the logits go into `folder`."""
    room = min(NEW_TOKENS, (model.context or 10**9) // 2)
    most = min(PROMPT_TOKENS, (model.context or 10**9) - room)
    prompts = [prompt_ids(model, prompt, *how_encoded(run))[:most] for prompt in run_prompts(run, PROMPTS)]
    if not prompts:
        raise BasiscopeError(f"Run {run.id}: it has no prompt to compare the export on.")
    found = Expected([], [len(prompt) for prompt in prompts], folder, surgery is not None)
    for number, prompt in enumerate(prompts):
        progress("observe", number, len(prompts))
        generation = Generation(model, directions, [Row(prompt, steering)], Sampling(room)).run()
        if generation.ended[0] == "not a number":
            raise BasiscopeError(f"Strength {steering.strengths[0][1]:g}: {generation.note(0)}.")
        ids = (*prompt, *generation.tokens[0])
        found.texts.append(ids)
        with steered(model, directions, steering):
            found.keep("steered", number, _logits(model.module, ids))
        found.keep("plain", number, _logits(model.module, ids))
        if surgery:
            with surgery():
                found.keep("surgery", number, _logits(model.module, ids))
    return found


def _logits(module: Any, ids: Sequence[int]) -> torch.Tensor:
    """(tokens, vocabulary) float32 on the CPU."""
    import torch

    with torch.inference_mode():
        device = module.get_input_embeddings().weight.device
        return (
            module(torch.tensor([list(ids)], device=device), **named_options(module, use_cache=False))
            .logits[0]
            .float()
            .cpu()
        )


def compare_logits(expected: Expected, module: Any, dtype: str, progress: Progress = silent) -> Agreement:
    """Teacher-forced on the live text: where every token of it is the reloaded model's first choice, its own
    greedy text is the same."""
    import torch

    def total(values: torch.Tensor) -> float:
        return float(values.sum(dtype=torch.float64))

    difference = effect = largest = squares = along = whole = unlike = 0.0
    same = 0
    for number, (ids, start) in enumerate(zip(expected.texts, expected.starts, strict=True)):
        progress("compare", number, len(expected.texts))
        logits, is_same = _logits(module, ids), True
        names = ("steered", "plain", *(["surgery"] if expected.has_surgery else []))
        kept = zip(*(expected.pieces(name, number) for name in names), strict=True)
        for place, (found, (moved, plain, *biased)) in enumerate(zip(logits.split(PIECE), kept, strict=True)):
            apart, change = (found - moved).nan_to_num(nan=np.inf), moved - plain
            difference = max(difference, float(apart.abs().max()))
            effect = max(effect, float(change.abs().max()))
            largest = max(largest, float(moved.abs().max()))
            squares, along = squares + total(apart.square()), along + total(apart * change)
            whole += total(change.square())
            unlike += sum(total((found - one).square()) for one in biased)
            predicting = slice(max(0, start - 1 - place * PIECE), None)
            is_same &= bool((found[predicting].argmax(dim=1) == moved[predicting].argmax(dim=1)).all())
        same += is_same
    share, kept_effect = (float(np.sqrt(squares / whole)), 1 + along / whole) if whole else (np.inf, 0.0)
    surgery = (float(np.sqrt(unlike / whole)) if whole else np.inf) if expected.has_surgery else None
    return Agreement(difference, effect, share, kept_effect, largest, same, len(expected.texts), dtype, surgery)
