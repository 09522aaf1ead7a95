"""What bfloat16 costs in accuracy against float32: activations, basis and ranking."""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import spearmanr

from bench.measure import clock, largest_angle
from core.activations import Activations, TokenWindows, extract
from core.basis import recover_basis
from core.model import LanguageModel

K, TOP, EVERY = 10, 50, 2


def compare_bfloat16(
    exact: LanguageModel, rounded: LanguageModel, windows: TokenWindows, blocks: tuple[int, ...]
) -> None:
    """Print the errors over every second example, and how long each data type takes."""
    chosen = np.arange(0, len(windows), EVERY)
    start = clock()
    one, halfway = pool(exact, windows, chosen, blocks), clock()
    other, end = pool(rounded, windows, chosen, blocks), clock()
    bases = [
        recover_basis(Activations(chosen, [torch.from_numpy(rows)], blocks), K).basis for rows in (one, other)
    ]
    scores = [(rows - basis.mean) @ basis.directions.T for rows, basis in zip((one, other), bases, strict=True)]
    # Directions may change order or sign: each is compared with the one that it correlates with most.
    rho = np.abs(spearmanr(np.hstack(scores)).statistic[:K, K:])
    partner = rho.argmax(axis=1)
    top = min(TOP, len(chosen) // 4)
    kept = [overlap(scores[0][:, j], scores[1][:, partner[j]], top) for j in range(K)]
    truth = np.linalg.qr(bases[0].directions.T.astype(np.float64))[0].T
    error = np.linalg.norm(other - one, axis=1)
    print(
        f"  bfloat16 against float32, {len(chosen)} examples, medians (worst): activations "
        f"{np.median(error / np.linalg.norm(one, axis=1)):.1e}, of their distance from the mean "
        f"{np.median(error / np.linalg.norm(one - one.mean(axis=0), axis=1)):.1e}; largest principal angle of "
        f"k = {K} {largest_angle(bases[1].directions, truth):.3f} rad; Spearman of scores "
        f"{np.median(rho.max(axis=1)):.4f} ({rho.max(axis=1).min():.4f}); top {top} of both ends kept "
        f"{np.median(kept):.0%} ({min(kept):.0%}); time {(end - halfway) / (halfway - start):.1f} of float32"
    )


def pool(model: LanguageModel, windows: TokenWindows, chosen: np.ndarray, blocks: tuple[int, ...]) -> np.ndarray:
    """Activations (n, d) of the chosen examples, in their order."""
    rows = np.empty((len(windows), len(blocks) * model.hidden_size), dtype=np.float32)
    for batch in extract(model, windows, chosen, blocks):
        rows[batch.positions] = batch.activations
    return rows[chosen]


def overlap(one: np.ndarray, other: np.ndarray, top: int) -> float:
    """The share of the top examples at both ends that two scores have in common, whatever their sign."""
    other = other * np.sign(np.corrcoef(one, other)[0, 1])
    first, second = np.argsort(one), np.argsort(other)
    shared = len(np.intersect1d(first[:top], second[:top])) + len(np.intersect1d(first[-top:], second[-top:]))
    return shared / (2 * top)
