"""Activations -> Basis: mean-centred PCA from shards that need not fit into memory, and how far to trust it.

The leading directions come from a block Krylov iteration with full reorthogonalisation and Rayleigh-Ritz
(Musco and Musco 2015, arXiv 1504.05477; Golub and Underwood 1977), one pass over the shards per step. It
needs fewer passes than power iteration to the same accuracy and knows its own residuals, so it stops at a
tolerance. The first block is oversampled to at least one and a half times k.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from core.activations import Activations, Progress, silent
from core.errors import BasiscopeError

if TYPE_CHECKING:
    import pandas as pd
    import torch

SIGN_RULE = "the coordinate of largest magnitude is positive"
TOLERANCE = 1e-5
MAX_PASSES = 40
CHUNK_BYTES = 16 * 2**20
SMALL_MEAN = 1e4
"""Squared norm of the mean, in units of the total variance, up to which it may be taken out of products."""
COLUMNS = 48
"""Blocks are a multiple of this wide: the tile of float32 products, so that 32 columns take hardly less time."""
ROUNDING = 2e-7
"""Relative error of a float32 product, at the scale of the largest eigenvalue."""
RESAMPLES = 200
RESAMPLE_ROWS = 512
STABLE_COSINE = 0.9
FEW_DIMENSIONS = 10
FULL_RESAMPLES_K, FEWEST_RESAMPLES = 100, 50
"""Up to which k there are RESAMPLES resamples, and how many there are at least beyond, where each costs as k^4."""


@dataclass(frozen=True)
class Basis:
    """k orthonormal directions of centred activations whose blocks were divided by `block_scale`.

    directions: (k, d) float32, orthonormal rows, by falling variance; signs by SIGN_RULE
    mean: (d,) float32, of the raw activations
    singular_values: (k,) float32, of the scaled and centred activations (n, d)
    block_scale: (blocks,) float32, ones for the raw recipe
    total_variance: summed over all d dimensions, ddof 1
    n: the number of examples; residuals: (k,) relative residuals |C v - lambda v| / lambda at the end
    """

    directions: np.ndarray
    mean: np.ndarray
    singular_values: np.ndarray
    block_scale: np.ndarray
    total_variance: float
    n: int
    residuals: np.ndarray

    @property
    def k(self) -> int:
        return len(self.directions)

    @property
    def explained_variance_ratio(self) -> np.ndarray:
        """(k,) share of the total variance that each direction carries."""
        return self.singular_values.astype(np.float64) ** 2 / (self.n - 1) / self.total_variance

    @property
    def block_energies(self) -> np.ndarray:
        """(k, blocks): squared norm of each direction's part in each block; rows sum to 1."""
        parts = self.directions.reshape(self.k, len(self.block_scale), -1).astype(np.float64)
        return (parts**2).sum(axis=2)

    @property
    def concentration(self) -> np.ndarray:
        """(k,) share of each direction's squared norm on its FEW_DIMENSIONS largest coordinates: near 1
        means that massive activations survived the pooling."""
        squares = np.sort(self.directions.astype(np.float64) ** 2, axis=1)
        return squares[:, -FEW_DIMENSIONS:].sum(axis=1)

    def block_vectors(self) -> np.ndarray:
        """(k, blocks, hidden): each direction's part per block in raw units, the block scale undone."""
        parts = self.directions.reshape(self.k, len(self.block_scale), -1)
        return parts * self.block_scale[:, None]


@dataclass(frozen=True)
class Scores:
    """What one pass over the activations gives per example, in the order of `example_id` (n,).

    scores: (n, k) centred; cosines: (n, k) between each direction and the uncentred activations
    """

    example_id: np.ndarray
    scores: np.ndarray
    cosines: np.ndarray


@dataclass(frozen=True)
class Stability:
    """Bootstrap over examples: angles in degrees between the basis and those of resampled data.

    direction_angle, subspace_angle: (k, 2) median and 95th percentile, of direction j alone and of the
    largest angle between the spans of the first j directions; variance_interval: (k, 2) 95% interval of
    the explained variance ratio; groups: (k,) consecutive directions that are stable only as a span share a
    number; last_is_open: whether the last group would need directions beyond k to be stable
    """

    direction_angle: np.ndarray
    subspace_angle: np.ndarray
    variance_interval: np.ndarray
    groups: np.ndarray
    last_is_open: bool
    resamples: int


# --- one pass -------------------------------------------------------------------------------------------


class _Centred:
    """Re-iterable chunks (rows, d) float32 of (A - mean) / block scale, all in one reused buffer."""

    def __init__(self, activations: Activations, device: str) -> None:
        import torch

        self.activations = activations
        self.device = device
        d = activations.d
        self.rows = max(16, min(CHUNK_BYTES // (4 * d), max(len(shard) for shard in activations.shards)))
        self.buffer = torch.empty(self.rows, d, device=device)
        self.mean = torch.zeros(d, device=device)
        self.scale = torch.ones(d, device=device)
        self.trace: float | None = None
        """The trace of X^T X, known after the first product."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        import torch

        scaled = bool((self.scale != 1).any())
        for raw in self._stored():
            chunk = self.buffer[: len(raw)]
            torch.sub(raw, self.mean, out=chunk)
            if scaled:
                chunk.div_(self.scale)
            yield chunk

    def gram_product(self, block: torch.Tensor) -> torch.Tensor:
        """X^T X block for a block (d, width), in one pass. Summed up transposed, which is a quarter faster."""
        import torch

        product = torch.zeros(block.shape[1], len(block), device=block.device)
        if self._may_centre_after():
            shift, total = self.mean @ block, torch.zeros(block.shape[1], device=block.device)
            for raw in self._stored():
                scores = (raw @ block).sub_(shift)
                product.addmm_(scores.T, raw)
                total += scores.sum(dim=0)
            return product.addr_(total, self.mean, alpha=-1).T.contiguous()
        squares = 0.0
        for chunk in self:
            product.addmm_((chunk @ block).T, chunk)
            squares += float(torch.linalg.vector_norm(chunk, dim=1).double().square().sum())
        self.trace = squares
        return product.T.contiguous()

    def _may_centre_after(self) -> bool:
        """Whether to multiply the rows as they are stored and take the mean out of the products, which saves a
        copy of each chunk. Not where the mean is so large that the products would lose the rest to rounding."""
        import torch

        stored = self.activations.shards
        if self.trace is None or (self.scale != 1).any() or any(s.dtype != torch.float32 for s in stored):
            return False
        return self.activations.n * float(self.mean.double().square().sum()) < SMALL_MEAN * self.trace

    def _stored(self) -> Iterator[torch.Tensor]:
        for shard in self.activations.shards:
            for raw in shard.split(self.rows):
                yield raw.to(self.device)


def _pieces(activations: Activations) -> Iterator[torch.Tensor]:
    """The rows as they are stored, few enough at a time for sums in float32 to be exact to its rounding."""
    for shard in activations.shards:
        yield from shard.split(max(16, CHUNK_BYTES // (8 * activations.d)))


def _mean(activations: Activations) -> torch.Tensor:
    import torch

    total = torch.zeros(activations.d, dtype=torch.float64)
    for raw in _pieces(activations):
        total += raw.sum(dim=0, dtype=torch.float32)
    return total / activations.n


def _block_rms(activations: Activations) -> np.ndarray:
    """(blocks,) root mean square of each block's slice over all examples."""
    import torch

    squares = torch.zeros(len(activations.blocks), dtype=torch.float64)
    for raw in _pieces(activations):
        parts = raw.float().view(len(raw), len(activations.blocks), -1)
        squares += torch.linalg.vector_norm(parts, dim=2).double().square().sum(dim=0)
    return (squares / (activations.n * activations.hidden_size)).sqrt().numpy()


# --- the basis ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RecoveredBasis:
    """A basis, and `wider` (r, d): orthonormal rows that begin with it, the span in which it is bootstrapped."""

    basis: Basis
    wider: np.ndarray


def check_k(k: int, n: int, d: int) -> None:
    """Raises BasiscopeError where n examples in d dimensions cannot have k directions."""
    if n < 2:
        raise BasiscopeError(f"A basis needs at least 2 usable examples, there is {n}.")
    if not 1 <= k <= min(n - 1, d):
        raise BasiscopeError(
            f"k = {k}: {n:,} examples in {d:,} dimensions have at most {min(n - 1, d)} directions; lower --k."
        )


def recover_basis(
    activations: Activations,
    k: int = 10,
    block_scale: str = "raw",
    seed: int = 0,
    tolerance: float = TOLERANCE,
    device: str = "cpu",
    progress: Progress = silent,
) -> RecoveredBasis:
    """PCA of all blocks concatenated: the k leading right singular vectors of the centred activations.

    Stops when every direction's measured relative residual is below `tolerance` or no longer halves (the
    rounding of float32 products). Raises BasiscopeError where k directions cannot exist.
    """
    import torch

    n, d = activations.n, activations.d
    check_k(k, n, d)
    data = _Centred(activations, device)
    mean = _mean(activations)
    scale = _block_rms(activations) if block_scale == "rms" else np.ones(len(activations.blocks))
    if (scale == 0).any():
        raise BasiscopeError("Block scale rms: one block's activations are all zero; use --block-scale raw.")
    data.mean.copy_(mean)
    data.scale.copy_(torch.from_numpy(np.repeat(scale, activations.hidden_size)))
    values, rows, residuals, total = _leading(data, n, d, k, seed, tolerance, progress)
    rounding = torch.finfo(torch.float32).eps ** 2 * n * float((data.mean / data.scale).double().square().sum())
    floor = max(1e-12 * values[0], rounding)
    if values[k - 1] <= floor:
        rank = int((values > floor).sum())
        if not rank:
            raise BasiscopeError(
                f"All {n:,} examples have the same activations, so there is no direction to find with any --k; "
                "check that the data has different texts in the column read."
            )
        raise BasiscopeError(f"The activations vary in only {rank} directions; lower --k (or check the data).")
    rows *= np.sign(rows[np.arange(len(rows)), np.abs(rows).argmax(axis=1)])[:, None]
    basis = Basis(
        directions=rows[:k],
        mean=mean.numpy().astype(np.float32),
        singular_values=np.sqrt(values[:k]).astype(np.float32),
        block_scale=scale.astype(np.float32),
        total_variance=total / (n - 1),
        n=n,
        residuals=residuals[:k],
    )
    return RecoveredBasis(basis, rows)


def _leading(
    data: _Centred, n: int, d: int, k: int, seed: int, tolerance: float, progress: Progress
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Eigenvalues (r,), eigenvectors (r, d) and relative residuals (r,) of X^T X, and its trace.

    The residuals of a growing span are predictions, blind to the rounding of the products it grew from. Where
    that could matter, because the eigenvalues span too wide a range, the iteration restarts from its own
    eigenvectors when they look right: one pass then measures them, each at the scale of its own eigenvalue,
    and refines them where they are not.
    """
    import torch

    width = min(2 * k, n - 1, d)
    start = min(COLUMNS * -(-3 * k // (2 * COLUMNS)), n - 1, d)
    generator = torch.Generator().manual_seed(seed)
    block = torch.linalg.qr(torch.randn(d, start, generator=generator).to(data.device))[0]
    span, projected = _nothing(block)
    measured = np.inf
    for step in range(MAX_PASSES):
        is_restart = step > 0 and span.shape[1] == 0
        size = block.shape[1]
        product = data.gram_product(block)
        span = torch.cat([span, block], dim=1)
        projected = _bordered(projected, (span.T @ product).double().cpu())
        block, coupling = _outside(span, product)
        values, vectors = torch.linalg.eigh(projected)
        values, vectors = values.flip(0)[:width].clamp(min=0), vectors.flip(1)[:, :width]
        floor = max(float(values[0]), 1e-300) * 1e-12
        residuals = (coupling @ vectors[-size:]).norm(dim=0) / values.clamp(min=floor)
        worst = float(residuals[:k].max())
        progress("basis", step + 1, 0)
        is_exact = worst < tolerance and ROUNDING * values[0] < tolerance * values[k - 1]
        if is_exact or (is_restart and (worst < tolerance or worst > 0.5 * measured)):
            break
        if is_restart:
            measured = worst
        if worst < tolerance or span.shape[1] == d:
            block = torch.linalg.qr(span @ vectors.to(span))[0]
            span, projected = _nothing(block)
    progress("basis", step + 1, step + 1)
    ritz = torch.linalg.qr(span @ vectors.to(span))[0] if span.shape[1] else block
    return values.numpy(), ritz.T.contiguous().cpu().numpy(), residuals.numpy(), data.trace or 0.0


def _nothing(block: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """An empty span (d, 0) and the empty matrix projected on it."""
    import torch

    return block[:, :0], torch.zeros(0, 0, dtype=torch.float64)


def _bordered(projected: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    """The symmetric matrix (m, m) that begins with `projected` and ends with the columns `column`."""
    import torch

    old, new = projected.shape[0], column.shape[1]
    grown = torch.zeros(old + new, old + new, dtype=projected.dtype)
    grown[:old, :old] = projected
    grown[:, old:] = column
    grown[old:, :] = column.T
    grown[old:, old:] = (column[old:] + column[old:].T) / 2
    return grown


def _outside(span: torch.Tensor, product: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Orthonormal columns for the part of `product` outside `span` (as many as fit into the d dimensions),
    and their coupling to it. Projected twice, which is enough in floating point."""
    import torch

    outside = product - span @ (span.T @ product)
    outside = outside - span @ (span.T @ outside)
    block, coupling = torch.linalg.qr(outside)
    block = block[:, : len(span) - span.shape[1]]
    block = torch.linalg.qr(block - span @ (span.T @ block))[0]
    return block, coupling.double().cpu()


# --- scores ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProjectedScores:
    """Scores; `wider_scores` (n, r), the centred scores on the wider span; `outside` (n,), the squared distance
    of each centred example from that span."""

    scores: Scores
    wider_scores: np.ndarray
    outside: np.ndarray


def project(
    activations: Activations, recovered: RecoveredBasis, device: str = "cpu", progress: Progress = silent
) -> ProjectedScores:
    """Scores and cosines of every example, in one pass over the activations."""
    import torch

    basis, wider = recovered.basis, torch.from_numpy(recovered.wider)
    data = _Centred(activations, device)
    data.mean.copy_(torch.from_numpy(basis.mean))
    data.scale.copy_(torch.from_numpy(np.repeat(basis.block_scale, activations.hidden_size)))
    wider = wider.to(data.device)
    scaled_mean = data.mean / data.scale
    mean_square = float(scaled_mean.double().square().sum())
    n, k = activations.n, basis.k
    wide = np.empty((n, len(wider)), dtype=np.float32)
    squares, uncentred = np.empty(n), np.empty(n)
    start = 0
    for chunk in data:
        rows = slice(start, start + len(chunk))
        wide[rows] = (chunk @ wider.T).cpu().numpy()
        squares[rows] = torch.linalg.vector_norm(chunk, dim=1).double().square().cpu().numpy()
        uncentred[rows] = squares[rows] + mean_square + 2 * (chunk @ scaled_mean).double().cpu().numpy()
        start += len(chunk)
        progress("scores", start, n)
    offset = (wider[:k] @ scaled_mean).cpu().numpy()
    norms = np.sqrt(np.maximum(uncentred, 1e-30))
    cosines = ((wide[:, :k] + offset) / norms[:, None]).astype(np.float32)
    outside = np.maximum(squares - (wide.astype(np.float64) ** 2).sum(axis=1), 0)
    return ProjectedScores(Scores(activations.example_id, wide[:, :k].copy(), cosines), wide, outside)


# --- how far to trust it --------------------------------------------------------------------------------


def bootstrap_stability(
    projected: ProjectedScores,
    basis: Basis,
    resamples: int | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Stability:
    """Resample the examples, redo the PCA and measure how far the directions turn. Progress in resamples, of which
    there are `n_resamples(k)` unless said. Held at once: the scores in float64, resamples r (r + 3) / 2 moments
    in float64 (200 MB at k = 500), and of the rest one resample or one chunk of rows.

    The PCA of a resample is taken exactly within the wider span of r directions (Fisher et al. 2016,
    arXiv 1405.0922); the turn out of that span is added to first order: its expected squared tangent for
    direction j is sum_i s_ij^2 e_i^2 / (n (lambda_j - lambda_r))^2, with e_i^2 what of example i lies outside.

    The interval of a share is of the variance along the direction as it is, exactly: the largest variance that a
    resample has fits the noise of the examples a second time, and its interval misses the share of the whole
    population where examples are fewer than dimensions (docs/statistics.md).
    """
    scores = projected.wider_scores.astype(np.float64)
    n, k = len(scores), basis.k
    values = (scores**2).mean(axis=0)
    gap = np.maximum(values[:k] - values[-1], 1e-12 * values[0])
    leak = (scores[:, :k] ** 2 * projected.outside[:, None]).sum(axis=0) / (n * gap) ** 2
    leak = np.zeros(k) if projected.outside.sum() <= 1e-6 * (scores**2).sum() else leak
    resamples = resamples or n_resamples(k)
    progress("stability", 0, resamples)
    directions, subspaces, shares = (np.empty((resamples, k)) for _ in range(3))
    drawn = _resampled(scores, projected.outside, resamples, np.random.default_rng(seed))
    for i, (covariance, outside) in enumerate(drawn):
        overlap = np.linalg.eigh(covariance).eigenvectors[:k, ::-1][:, :k]
        shares[i] = np.diagonal(covariance)[:k] / max(np.trace(covariance) + outside, 1e-300)
        directions[i] = np.abs(np.diagonal(overlap))
        subspaces[i] = [np.linalg.svd(overlap[:j, :j], compute_uv=False)[-1] for j in range(1, k + 1)]
        progress("stability", i + 1, resamples)
    directions /= np.sqrt(1 + leak)
    subspaces /= np.sqrt(1 + np.maximum.accumulate(leak))
    direction_angle, subspace_angle = _angles(directions), _angles(subspaces)
    closed = subspace_angle[:, 1] <= np.degrees(np.arccos(STABLE_COSINE))
    return Stability(
        direction_angle,
        subspace_angle,
        np.quantile(shares, [0.025, 0.975], axis=0).T,
        np.concatenate([[0], np.cumsum(closed)[:-1]]),
        not closed[-1],
        resamples,
    )


def n_resamples(k: int) -> int:
    """How many resamples a basis of k directions gets."""
    return RESAMPLES if k <= FULL_RESAMPLES_K else max(FEWEST_RESAMPLES, RESAMPLES * FULL_RESAMPLES_K // k)


def _resampled(
    scores: np.ndarray, outside: np.ndarray, resamples: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, float]]:
    """Of each resample of the rows the covariance (r, r) of the scores and the mean of `outside`.

    All resamples share one product of their counts with the moments of each row. The counts are drawn chunk
    by chunk, given how many of the n draws fall into each chunk, which has the same distribution.
    """
    n, r = scores.shape
    upper = np.triu_indices(r)
    pairs = len(upper[0])
    width = CHUNK_BYTES // (8 * RESAMPLE_ROWS)
    starts = np.arange(0, n, RESAMPLE_ROWS)
    draws = rng.multinomial(n, np.diff(starts, append=n) / n, size=resamples)
    moments = np.zeros((resamples, pairs + r + 1))
    for start, drawn in zip(starts, draws.T, strict=True):
        rows = scores[start : start + RESAMPLE_ROWS].T.copy()
        counts = rng.multinomial(drawn, np.full(rows.shape[1], 1 / rows.shape[1])).astype(np.float64)
        for first in range(0, pairs, width):
            some = slice(first, min(first + width, pairs))
            moments[:, some] += counts @ (rows[upper[0][some]] * rows[upper[1][some]]).T
        moments[:, pairs:] += counts @ np.vstack([rows, outside[start : start + RESAMPLE_ROWS]]).T
    moments /= n
    for moment in moments:
        second, centre, outside_mean = np.split(moment, [pairs, -1])
        covariance = np.empty((r, r))
        covariance[upper] = covariance[upper[::-1]] = second
        yield covariance - np.outer(centre, centre), float(outside_mean[0])


def _angles(cosines: np.ndarray) -> np.ndarray:
    """(k, 2) median and 95th percentile in degrees of angles given by cosines (resamples, k)."""
    return np.degrees(np.arccos(np.clip(np.quantile(cosines, [0.5, 0.05], axis=0).T, 0, 1)))


def rank_correlation(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Spearman's rho with its 95% interval by Fisher's z with the standard error of Bonett and Wright
    (2000). Not a number where either side is constant or there are fewer than 4 examples."""
    from scipy.stats import spearmanr

    if len(x) < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return (np.nan, np.nan, np.nan)
    rho = float(spearmanr(x, y).statistic)
    z = np.arctanh(np.clip(rho, -0.999999, 0.999999))
    half = 1.959964 * np.sqrt((1 + rho**2 / 2) / (len(x) - 3))
    return rho, float(np.tanh(z - half)), float(np.tanh(z + half))


def describe_directions(basis: Basis, scores: Scores, stability: Stability, lengths: np.ndarray) -> pd.DataFrame:
    """One row per direction: variance, stability, concentration, and rank correlation with length (n,)."""
    import pandas as pd

    correlation = np.array([rank_correlation(scores.scores[:, j], lengths) for j in range(basis.k)])
    return pd.DataFrame(
        {
            "direction": np.arange(1, basis.k + 1),
            "explained_variance": basis.explained_variance_ratio,
            "explained_variance_low": stability.variance_interval[:, 0],
            "explained_variance_high": stability.variance_interval[:, 1],
            "angle": stability.direction_angle[:, 0],
            "angle_95": stability.direction_angle[:, 1],
            "subspace_angle": stability.subspace_angle[:, 0],
            "subspace_angle_95": stability.subspace_angle[:, 1],
            "group": stability.groups,
            "concentration": basis.concentration,
            "length_correlation": correlation[:, 0],
            "length_correlation_low": correlation[:, 1],
            "length_correlation_high": correlation[:, 2],
        }
    )
