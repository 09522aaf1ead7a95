"""The first-order proxy: how the loss on solutions would change along every direction, from one backward pass.

At strength 0 the derivative of a text's loss along direction j is sum_l <sum_t dLoss/dh_l(t), v_j,l>, h_l(t) the
output of block l at position t. One forward and one backward pass give the sums over t, (blocks, hidden) for each
text; every direction, random ones too, is then a product with them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from core.activations import Progress, silent
from core.errors import BasiscopeError
from core.evaluation import Interval, mean_interval
from core.model import LanguageModel, block_output, with_block_output
from core.steering.intervention import Directions
from core.usefulness import SIGNIFICANCE
from core.usefulness.controls import draws_for, random_units
from core.usefulness.development import Solutions, batches_of, guess_notes, row_losses
from core.usefulness.evidence import (
    BOTH,
    Control,
    Cost,
    Effect,
    Evidence,
    Measure,
    false_discovery,
    level_of_best,
    p_against_best,
)
from core.versions import versions_of
from core.workspace import Run

if TYPE_CHECKING:
    import torch

GAIN = Measure("gain", "loss on right solutions falls by", "nats per token and unit of strength")
GAIN_SD = Measure("gain-sd", "the same in standard deviations of the scores", "nats per token and sd")
CONTRAST = Measure("contrast", "right solutions gain on wrong ones by", "nats per token and unit of strength")
PACKAGES = ("torch", "transformers", "numpy", "scipy")
FLIPS = 2_000
NOT_APPLIED = {
    CONTRAST: "controls that do not apply: a random model's loss cannot be compared with a trained one's, and "
    "words and length have none",
    GAIN: "controls that do not apply: a random model's loss cannot be compared with a trained one's, words and "
    "length have none, and there are no verdicts to shuffle within problems",
}


@dataclass(frozen=True)
class Gradients:
    """Of n texts: losses (n,) in nats per response token; sums (n, blocks, hidden), the gradient of each text's
    loss at the outputs of the blocks, summed over its positions, in raw units."""

    losses: np.ndarray
    sums: np.ndarray


def loss_gradients(
    model: LanguageModel, solutions: Solutions, blocks: Sequence[int], progress: Progress = silent
) -> Gradients:
    """One forward and one backward pass over the solutions. Nothing before the first of the blocks is
    differentiated, and no weight is."""
    import torch

    found = np.empty(solutions.n)
    sums = np.empty((solutions.n, len(blocks), model.hidden_size))
    done = 0
    progress("first-order", 0, solutions.n)
    for rows in batches_of(model, solutions):
        with torch.enable_grad(), _block_gradients(model, blocks) as gradients:
            each = row_losses(model, solutions, rows)
            each.sum().backward()
        found[rows] = each.detach().double().cpu().numpy()
        for place, block in enumerate(blocks):
            sums[rows, place] = gradients[block].double().cpu().numpy()
        done += len(rows)
        progress("first-order", done, solutions.n)
    if not (np.isfinite(found).all() and np.isfinite(sums).all()):
        raise BasiscopeError(
            "The loss on the development set is not a number everywhere; recover the run again with "
            "--dtype float32."
        )
    return Gradients(found, sums)


@contextmanager
def _block_gradients(model: LanguageModel, blocks: Sequence[int]) -> Iterator[dict[int, torch.Tensor]]:
    """Within the block, a backward pass leaves block -> gradient of its output, summed over positions, (rows,
    hidden) in float32 or wider. The graph begins at the first block."""
    import torch

    found: dict[int, torch.Tensor] = {}

    def hook_for(block: int) -> Any:
        def keep(gradient: torch.Tensor) -> None:
            wide = gradient if gradient.dtype == torch.float64 else gradient.float()
            found[block] = wide.sum(dim=1)

        def hook(_block: Any, _args: Any, output: Any) -> Any:
            hidden = block_output(output)
            if block == blocks[0]:
                hidden = hidden.detach().requires_grad_()
            hidden.register_hook(keep)
            return with_block_output(output, hidden)

        return hook

    handles = [model.blocks[block].register_forward_hook(hook_for(block)) for block in blocks]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def derivatives(directions: Directions, sums: np.ndarray) -> np.ndarray:
    """(n, k, blocks): the derivative of each text's loss by the strength of each direction, block by block."""
    basis = directions.basis
    parts = basis.directions.reshape(basis.k, len(directions.blocks), -1).astype(np.float64)
    scaled = parts * basis.block_scale[:, None].astype(np.float64)
    return np.einsum("nbh,kbh->nkb", sums, scaled)


def random_derivatives(directions: Directions, sums: np.ndarray, m: int, seed: int) -> np.ndarray:
    """(n, m) the same along m random directions of the same norm, over all blocks."""
    scale = np.repeat(directions.basis.block_scale.astype(np.float64), sums.shape[2])
    flat = sums.reshape(len(sums), -1) * scale
    return np.concatenate([flat @ units.T for units in random_units(m, flat.shape[1], seed)], axis=1)


def by_problem(values: np.ndarray, solutions: Solutions) -> np.ndarray:
    """(problems, ...) means over the texts of each problem."""
    counts = np.bincount(solutions.problem)
    sums = np.zeros((len(counts), *values.shape[1:]))
    np.add.at(sums, solutions.problem, values)
    return sums / counts.reshape(-1, *[1] * (values.ndim - 1))


def contrasts(values: np.ndarray, solutions: Solutions) -> np.ndarray:
    """(problems, ...) of each problem with both, the mean of its wrong texts less that of its right ones."""
    shape = [-1, *[1] * (values.ndim - 1)]
    found = []
    for side in (~solutions.right, solutions.right):
        counts = np.bincount(solutions.problem, side)
        sums = np.zeros((len(counts), *values.shape[1:]))
        np.add.at(sums, solutions.problem[side], values[side])
        with np.errstate(invalid="ignore", divide="ignore"):
            found.append(sums / counts.reshape(shape))
    return (found[0] - found[1])[solutions_with_both(solutions)]


def solutions_with_both(solutions: Solutions) -> np.ndarray:
    """(problems,) whether a problem has right and wrong texts."""
    hits, all_of = np.bincount(solutions.problem, solutions.right), np.bincount(solutions.problem)
    return (hits > 0) & (hits < all_of)


def first_order(
    run: Run,
    model: LanguageModel,
    solutions: Solutions,
    request: dict[str, Any],
    notes: Sequence[str] = (),
    seed: int = 0,
    progress: Progress = silent,
) -> Evidence:
    """The proxy for all directions of a run. Where problems have right and wrong texts, the contrast of the two is
    the primary measure, else the gain of the right ones."""
    start = time.monotonic()
    directions = Directions.of(run)
    gradients = loss_gradients(model, solutions, directions.blocks, progress)
    is_paired = bool(solutions_with_both(solutions).sum() >= 2)
    right = _only_right(solutions)
    found: dict[Measure, tuple[np.ndarray, np.ndarray]] = {}
    slopes = derivatives(directions, gradients.sums)
    chance = random_derivatives(directions, gradients.sums, draws_for(run.k), seed)
    if right is not None:
        rows, only = right
        found[GAIN] = -by_problem(slopes[rows], only), -by_problem(chance[rows], only)
    if is_paired:
        found[CONTRAST] = contrasts(slopes, solutions), contrasts(chance, solutions)
    if not found:
        raise BasiscopeError("First-order: no solution is right, and no problem has right and wrong ones.")
    primary = CONTRAST if is_paired else GAIN
    effects, controls = [], []
    for measure, (values, drawn) in found.items():
        levels = [_random_control(measure, drawn, run.k)]
        levels += [shuffled_control(values.sum(axis=2), seed)] if measure == CONTRAST else []
        made = _judged(measure, values, drawn, levels)
        effects += made
        controls += levels
        if measure == GAIN:
            effects += [_in_deviations(one, float(directions.deviations[one.direction - 1])) for one in made]
    mean_loss = mean_interval(by_problem(gradients.losses[right[0]], right[1]) if right else gradients.losses)
    dropped = [f"{count:,} solutions left out: {why}" for why, count in solutions.left_out.items()]
    return Evidence(
        "first-order",
        run.id,
        primary.name,
        tuple(
            measure for measure in (GAIN, GAIN_SD, CONTRAST) if measure in found or (measure == GAIN_SD and right)
        ),
        tuple(effects),
        tuple(controls),
        request,
        Cost(round(time.monotonic() - start, 3), 2 * solutions.tokens),
        (
            f"{solutions.n:,} solutions of {solutions.problems:,} problems, {int(solutions.right.sum()):,} right",
            f"loss on the {'right' if right else 'wrong'} ones {mean_loss.value:.3f} nats per token "
            f"({mean_loss.low:.3f} to {mean_loss.high:.3f})",
            *guess_notes(model, mean_loss.value),
            *dropped,
            NOT_APPLIED[primary],
            *notes,
        ),
        {
            "solutions": solutions.n,
            "problems": solutions.problems,
            "right": int(solutions.right.sum()),
            "blocks": list(directions.blocks),
            "draws": draws_for(run.k),
            "seed": seed,
            "model": run.manifest["model"]["fingerprint"],
            "versions": versions_of(PACKAGES),
        },
    )


def _only_right(solutions: Solutions) -> tuple[np.ndarray, Solutions] | None:
    """Rows of the right texts, and these alone."""
    rows = np.flatnonzero(solutions.right)
    if not len(rows):
        return None
    codes = np.unique(solutions.problem[rows], return_inverse=True)[1]
    ids = tuple(solutions.ids[i] for i in rows)
    return rows, Solutions(ids, tuple(solutions.first[i] for i in rows), codes, solutions.right[rows], {})


def _random_control(measure: Measure, drawn: np.ndarray, k: int) -> Control:
    """From random directions drawn (problems, m)."""
    level = level_of_best(np.abs(drawn.mean(axis=0)), k)
    detail = f"95th percentile of the best of {k} random directions of the same norm, {drawn.shape[1]:,} drawn"
    return Control("random directions", measure.name, Interval(level, math.nan, math.nan, drawn.shape[1]), detail)


def shuffled_control(values: np.ndarray, seed: int) -> Control:
    """What the best direction reaches where right and wrong are exchanged in problems chosen at random, which
    flips the signs of these problems' contrasts (problems, k)."""
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(FLIPS, len(values)))
    best = np.abs(signs @ values / len(values)).max(axis=1)
    detail = (
        f"95th percentile of the best of {values.shape[1]} directions over {FLIPS:,} draws, right and wrong "
        f"exchanged in each of {len(values):,} problems or not"
    )
    level = Interval(float(np.quantile(best, 1 - SIGNIFICANCE)), math.nan, math.nan, FLIPS)
    return Control("shuffled verdicts", CONTRAST.name, level, detail)


def _judged(measure: Measure, values: np.ndarray, drawn: np.ndarray, controls: Sequence[Control]) -> list[Effect]:
    """Effects of all directions from values (problems, k, blocks), against random ones drawn (problems, m) and
    whatever the controls reach."""
    from scipy.stats import ttest_1samp

    sums, k = values.sum(axis=2), values.shape[1]
    with np.errstate(invalid="ignore"):
        p = np.asarray(ttest_1samp(sums, 0.0, axis=0).pvalue) if len(sums) > 1 else np.full(k, math.nan)
    chance = np.abs(drawn.mean(axis=0))
    level = max(control.level.value for control in controls)
    away = np.abs(sums.mean(axis=0))
    adjusted = np.maximum(false_discovery(p), p_against_best(away, chance, k))
    return [
        Effect(
            j + 1,
            BOTH,
            measure.name,
            mean_interval(sums[:, j]),
            float(p[j]),
            float(adjusted[j]),
            float(away[j] - level),
            tuple(values[:, j].mean(axis=0).tolist()),
        )
        for j in range(k)
    ]


def _in_deviations(effect: Effect, deviation: float) -> Effect:
    one = effect.effect
    scaled = Interval(one.value * deviation, one.low * deviation, one.high * deviation, one.n)
    blocks = tuple(part * deviation for part in effect.blocks)
    plain = replace(effect, measure=GAIN_SD.name, effect=scaled, blocks=blocks)
    return replace(plain, adjusted=math.nan, gap=math.nan)
