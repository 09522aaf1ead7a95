"""The basis of 20,000 x 20,000 activations on disk against scikit-learn: time, private memory, largest angle.

The matrix is made up: a decaying spectrum with noise around a large mean with a few massive dimensions. All
contenders run in this process, one after the other in every round, on the same files in the page cache.
"""

from __future__ import annotations

import ctypes
import gc
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from sklearn.decomposition import PCA, IncrementalPCA

from bench.measure import clock, largest_angle, machine, private_peak, show, spread
from core.basis import recover_basis
from core.workspace import load_activations

K, BLOCKS, SHARD_ROWS, BATCH = 25, 20, 1_600, 1_000
FACTORS, DECAY, NOISE, MASSIVE = 300, 0.6, 0.005, 5


def main(quick: bool) -> None:
    """Print the figures; quick: a small matrix once."""
    n, rounds = (4_000, 1) if quick else (20_000, 3)
    folder = Path(tempfile.gettempdir()) / f"basiscope-bench-{n}"
    if not (folder / "truth.safetensors").exists():
        print(f"basis: making {folder} and its float64 reference, once", flush=True)
        make(folder, n)
    truth = load_file(folder / "truth.safetensors")["directions"]
    contenders: list[tuple[str, Callable[[Path], np.ndarray], int]] = [
        ("ours, from disk", ours, rounds),
        ("PCA randomized, in memory", randomized, rounds),
        (f"IncrementalPCA, batch {BATCH:,}", incremental, 1),
    ]
    print(
        f"basis: {n:,} x {n:,} float32 on disk, k = {K}; {rounds} rounds (IncrementalPCA one), median (min to max)"
    )
    print(f"  {machine()}", flush=True)
    for shard in load_activations(folder, range(BLOCKS)).shards:
        shard.sum()  # into the page cache, before anything is timed
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name, _, _ in contenders}
    for turn in range(rounds):
        for name, run, times in contenders:
            if turn < times:
                found[name].append(measure(run, folder, truth))
    own = np.array(found["ours, from disk"])[:, 0]
    rows = []
    for name, values in found.items():
        seconds, memory, angles = np.array(values).T
        ratios = seconds / own[: len(seconds)]
        rows.append([name, spread(seconds, 1), spread(ratios, 1), f"{memory.max():,.0f}", f"{angles.max():.1e}"])
    show(["", "seconds", "times ours", "peak private MB", "largest angle (rad)"], rows)


def measure(run: Callable[[Path], np.ndarray], folder: Path, truth: np.ndarray) -> tuple[float, float, float]:
    """Seconds, peak private MB and the largest principal angle to the truth."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    peak: list[float] = []
    with private_peak(peak):
        start = clock()
        directions = run(folder)
        seconds = clock() - start
    return seconds, peak[0], largest_angle(directions, truth)


def ours(folder: Path) -> np.ndarray:
    return recover_basis(load_activations(folder, range(BLOCKS)), K).basis.directions


def randomized(folder: Path) -> np.ndarray:
    return PCA(K, svd_solver="randomized", random_state=0).fit(whole(folder, np.float32)).components_


def incremental(folder: Path) -> np.ndarray:
    pca = IncrementalPCA(K)
    for batch in batches(folder):
        pca.partial_fit(batch)
    return pca.components_


def batches(folder: Path) -> Iterator[np.ndarray]:
    """BATCH rows at a time, read from the mapped shards."""
    waiting = np.zeros((0, 0), dtype=np.float32)
    for shard in load_activations(folder, range(BLOCKS)).shards:
        rows = shard.numpy()
        waiting = np.concatenate([waiting, rows]) if len(waiting) else rows
        while len(waiting) >= BATCH:
            yield waiting[:BATCH].copy()
            waiting = waiting[BATCH:]
    if len(waiting):
        yield waiting


def whole(folder: Path, dtype: type) -> np.ndarray:
    """The matrix read into memory, which counts for a contender as reading from disk does for ours."""
    activations = load_activations(folder, range(BLOCKS))
    matrix: np.ndarray = np.empty((activations.n, activations.d), dtype=dtype)
    start = 0
    for shard in activations.shards:
        matrix[start : start + len(shard)] = shard.numpy()
        start += len(shard)
    return matrix


def make(folder: Path, n: int) -> None:
    """Write the shards and the exact directions (K, n) float64, by Lanczos in float64 on the centred matrix."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    rng = np.random.default_rng(0)
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "activations").mkdir(parents=True)
    factors = rng.standard_normal((FACTORS, n), dtype=np.float32) / np.float32(np.sqrt(n))
    factors *= (np.arange(1, FACTORS + 1, dtype=np.float32) ** -DECAY)[:, None]
    mean = rng.standard_normal(n, dtype=np.float32) * np.float32(0.05)
    mean[rng.choice(n, MASSIVE, replace=False)] = 30.0
    for shard, start in enumerate(range(0, n, SHARD_ROWS)):
        ids = np.arange(start, min(start + SHARD_ROWS, n))
        rows = rng.standard_normal((len(ids), FACTORS), dtype=np.float32) @ factors + mean
        rows += rng.standard_normal(rows.shape, dtype=np.float32) * np.float32(NOISE)
        path = folder / "activations" / f"{shard:05d}.safetensors"
        save_file({"activations": rows, "example_id": ids}, path)
    matrix = whole(folder, np.float64)
    matrix -= matrix.mean(axis=0)
    gram = LinearOperator((n, n), matvec=lambda x: matrix.T @ (matrix @ x), dtype=np.float64)
    vectors = eigsh(gram, K, tol=1e-10, v0=rng.standard_normal(n))[1]
    save_file({"directions": np.ascontiguousarray(vectors.T)}, folder / "truth.safetensors")
