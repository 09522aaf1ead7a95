"""Runs made up of random numbers and words, written by the real writers, where no model is to be run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from core.activations import Recipe
from core.basis import Basis, Scores, Stability, describe_directions
from core.reading import Label, TokenScores
from core.recovery import SHADED_PER_END, extreme_examples
from core.store import digest, read_json, write_json
from core.workspace import FORMAT_VERSION, Run, Workspace, now

WORDS = [
    "apple",
    "bridge",
    "candle",
    "dragon",
    "engine",
    "forest",
    "garden",
    "hammer",
    "island",
    "jacket",
    "kettle",
    "ladder",
    "mirror",
    "needle",
    "orange",
    "pencil",
    "quarter",
    "ribbon",
    "silver",
    "tunnel",
    "umbrella",
    "violin",
    "window",
    "yellow",
    "zebra",
    "seven",
    "eight",
    "hundred",
    "minutes",
    "dollars",
]
BLOCKS, HIDDEN = (1, 2, 3, 4), 32


def synthetic_run(
    workspace: Workspace,
    n: int = 60,
    k: int = 4,
    words: int = 12,
    seed: int = 0,
    columns: dict[str, list[Any]] | None = None,
    texts: list[str] | None = None,
) -> Run:
    """A finished run of `n` examples whose scores are a random matrix of low rank, with labels, token scores
    and, instead of UMAP, a random plane through the scores as its map. Columns: those given, or a kind, a
    grade with gaps and a flag."""
    rng = np.random.default_rng(seed)
    columns = columns or {
        "kind": rng.choice(["addition", "division", "fractions"], n).tolist(),
        "grade": [
            None if missing else float(x) for missing, x in zip(rng.random(n) < 0.1, rng.random(n), strict=True)
        ],
        "is_hard": (rng.random(n) < 0.5).tolist(),
    }
    texts = texts or [" ".join(line) for line in rng.choice(WORDS, (n, words))]
    lengths = np.array([len(text.split()) + 1 for text in texts])
    spread = 1.0 / np.arange(1, k + 1)
    values = (rng.standard_normal((n, k)) * spread).astype(np.float32)
    values -= values.mean(axis=0)
    scores = Scores(np.arange(n), values, (values / 10).astype(np.float32))
    basis = _basis(values, rng)
    directions = describe_directions(basis, scores, _stability(basis), lengths)
    request = {"synthetic": seed, "n": n, "k": k, "words": words, "store_dtype": "float32"}
    kinds = {name: _kind(column) for name, column in columns.items()}
    with workspace.start(request, "synthetic") as partial:
        rows = (
            {"example_id": i, "text": text, "n_tokens": int(lengths[i])}
            | {c: column[i] for c, column in columns.items()}
            for i, text in enumerate(texts)
        )
        partial.write_examples(rows, kinds, ())
        with partial.token_writer() as write:
            for i, length in enumerate(lengths.tolist()):
                write(i, list(range(length)), 1)
        partial.save_results(basis, scores, directions)
        partial.save_map(scores.example_id, values @ rng.standard_normal((k, 2)))
        data = {"path": "synthetic.jsonl", "columns": {"text": "text"}, "rows": n, "examples": n}
        partial.save_facts({"data": data, "problems": []})
        partial.save_manifest(_manifest(partial.folder.name, basis, data | {"tokens": int(lengths.sum())}))
        run = workspace.finish(partial)
    for j in range(1, k + 1):
        run.save_label(j, Label(f"{WORDS[2 * j % 30]} : {WORDS[(2 * j + 1) % 30]}", "words", (("apple", 4.0),)))
    for example in extreme_examples(run, SHADED_PER_END):
        pieces = tuple(piece for word in texts[example].split() for piece in (word[:3], word[3:] + " ") if piece)
        run.save_token_scores(
            TokenScores(example, pieces, rng.standard_normal((len(pieces), k)).astype(np.float32))
        )
    return run


def with_examples(folder: Path, examples: pd.DataFrame) -> None:
    """Has the run in a folder hold other examples, as if they had been recovered."""
    path = folder / "examples.parquet"
    examples.to_parquet(path)
    manifest = read_json(folder / "manifest.json")
    manifest["files"][path.name] = digest(path)
    write_json(folder / "manifest.json", manifest)


def _kind(column: list[Any]) -> str:
    first = next((value for value in column if value is not None), "")
    return type(first).__name__ if isinstance(first, bool | int | float) else "str"


def _basis(scores: np.ndarray, rng: np.random.Generator) -> Basis:
    k, d = scores.shape[1], len(BLOCKS) * HIDDEN
    directions = np.linalg.qr(rng.standard_normal((d, k)))[0].T.astype(np.float32, order="C")
    singular_values = np.sort(np.linalg.norm(scores, axis=0))[::-1].astype(np.float32)
    total = 1.5 * float((singular_values**2).sum()) / (len(scores) - 1)
    ones = np.ones(len(BLOCKS), np.float32)
    return Basis(directions, np.zeros(d, np.float32), singular_values, ones, total, len(scores), np.zeros(k))


def _stability(basis: Basis) -> Stability:
    k, share = basis.k, basis.explained_variance_ratio
    angles = np.stack([np.linspace(5, 60, k), np.linspace(10, 85, k)], axis=1)
    interval = np.stack([0.9 * share, 1.1 * share], axis=1)
    return Stability(angles, 0.8 * angles, interval, np.arange(k) // 2, True, 200)


def _manifest(run_id: str, basis: Basis, data: dict[str, Any]) -> dict[str, Any]:
    recipe = Recipe().as_dict() | {"template": "plain", "dtype": "float32"}
    model = {
        "name": "no-model",
        "revision": None,
        "fingerprint": "none",
        "n_blocks": len(BLOCKS) + 2,
        "dtype": "float32",
    }
    return {
        "format_version": FORMAT_VERSION,
        "run": run_id,
        "created": now(),
        "model": model,
        "data": data,
        "recipe": recipe,
        "n": basis.n,
        "d": len(BLOCKS) * HIDDEN,
        "k": basis.k,
        "blocks": list(BLOCKS),
        "basis": {
            "total_variance": basis.total_variance,
            "residuals": [0.0] * basis.k,
            "last_group_is_open": True,
        },
        "versions": {},
        "steps": {"activations": {"seconds": 1.0, "tokens": data["tokens"], "tokens_per_second": 1.0}},
        "warnings": ["made up of random numbers and words: it says nothing about any model"],
        "shared": "synthetic",
    }


def synthetic_workspace(folder: Path, **choices: Any) -> Workspace:
    workspace = Workspace(folder)
    synthetic_run(workspace, **choices)
    return workspace
