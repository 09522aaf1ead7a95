"""What the benchmarks share: ratios of interleaved times, private memory, the machine, a plain table."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch


def machine() -> str:
    """The processor, memory, load and library versions in one line."""
    facts = [line.split(":") for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line]
    model = next((value.strip() for key, value in facts if key.startswith("model name")), platform.processor())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "numpy", "scikit-learn"))
    hardware = f"{torch.get_num_threads()} threads, {os.cpu_count()} cores {model}, {memory:.0f} GiB"
    return f"{hardware}, load {os.getloadavg()[0]:.1f}; Python {platform.python_version()}, {libraries}"


def clock() -> float:
    """Seconds. With one thread they are of processor time, which other work on the machine does not stretch."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def spread(values: Sequence[float] | np.ndarray, digits: int = 2) -> str:
    """Median (min to max)."""
    low, middle, high = np.quantile(np.asarray(values, dtype=float), [0, 0.5, 1])
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def show(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, the first column to the left and the others to the right."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    for line in lines:
        cells = [line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))]
        print("  " + "  ".join(cells), flush=True)


def private_bytes() -> int:
    """Memory of this process that no file backs (RssAnon)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


@contextmanager
def private_peak(peak: list[float]) -> Iterator[None]:
    """Append to `peak` by how many MB the private memory rose at most within the block, looked at every 5 ms."""
    start, highest, finished = private_bytes(), [0], threading.Event()

    def watch() -> None:
        while not finished.wait(0.005):
            highest[0] = max(highest[0], private_bytes() - start)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        finished.set()
        watcher.join()
        peak.append(highest[0] / 1e6)


def largest_angle(directions: np.ndarray, truth: np.ndarray) -> float:
    """Between the spans of two sets of k rows, by its sine, which is exact for small angles."""
    first = np.linalg.qr(directions.T.astype(np.float64))[0]
    return float(np.arcsin(min(1.0, float(np.linalg.norm(first - truth.T @ (truth @ first), 2)))))
