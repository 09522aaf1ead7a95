"""What the same measure gives where nothing was learnt: random directions, random models, words, length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from core.activations import Activations, extract_all
from core.basis import RecoveredBasis, project, recover_basis
from core.errors import BasiscopeError
from core.model import LanguageModel, randomised
from core.selection.vectors import tfidf_vectors
from core.workspace import Run

MODELS = ("random-model", "random-blocks")
MODEL_TRACES = 1_000
DRAWS_PER_DIRECTION, LEAST_DRAWS, MOST_DRAWS = 100, 1_000, 4_000
PART = 32
RANDOM_BYTES = 64 * 2**20
FOLDS = 5
MOST_WORDS = 20_000


def check_models(models: Sequence[str]) -> None:
    """Raises BasiscopeError where one is not of MODELS."""
    if unknown := set(models) - set(MODELS):
        raise BasiscopeError(f"Control {unknown.pop()!r} is not one of {', '.join(MODELS)}.")


def draws_for(k: int) -> int:
    """How many random directions to hold the best of k against."""
    return int(np.clip(DRAWS_PER_DIRECTION * k, LEAST_DRAWS, MOST_DRAWS))


def random_units(m: int, d: int, seed: int) -> Iterator[np.ndarray]:
    """m random directions as float32 unit rows (some, d), as many at a time as fit into RANDOM_BYTES."""
    rng = np.random.default_rng(seed)
    size = max(1, RANDOM_BYTES // (4 * d))
    for start in range(0, m, size):
        rows = rng.standard_normal((min(size, m - start), d), dtype=np.float32)
        yield rows / np.linalg.norm(rows, axis=1, keepdims=True)


def random_scores(run: Run, rows: np.ndarray, m: int, seed: int) -> Iterator[np.ndarray]:
    """Scores (n, some) of a run's examples at `rows` on m random directions of the same norm, in parts."""
    activations, basis = run.activations(), run.basis()
    ids = run.examples(["example_id"])["example_id"].to_numpy()
    place = np.argsort(activations.example_id)[np.searchsorted(np.sort(activations.example_id), ids)][rows]
    scale = np.repeat(basis.block_scale, activations.hidden_size)
    for units in random_units(m, activations.d, seed):
        yield _scores_of(activations, units / scale, basis.mean)[place]


def _scores_of(activations: Activations, units: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """(n, m) centred products of the stored rows with units (m, d)."""
    import torch

    columns, offset = torch.from_numpy(units.T.copy()), torch.from_numpy(units @ mean)
    size = max(16, RANDOM_BYTES // (4 * activations.d))
    parts = [raw.float() @ columns - offset for shard in activations.shards for raw in shard.split(size)]
    return np.asarray(torch.cat(parts).numpy())


def random_model_scores(run: Run, model: LanguageModel, rows: np.ndarray, kind: str, seed: int) -> np.ndarray:
    """(n, k) scores of a run's examples at `rows` in a basis recovered, with the run's recipe, from a model that
    has learnt nothing: `random-model`, or `random-blocks` under the trained embeddings."""
    activations, recovered = _random_model_basis(run, model, rows, kind, run.k, seed)
    return project(activations, recovered).scores.scores


@dataclass(frozen=True)
class ModelDirections:
    """units: (m, d) unit rows; texts: how many examples they were recovered from; tokens: run for it."""

    units: np.ndarray
    texts: int
    tokens: int


def random_model_directions(
    run: Run,
    model: LanguageModel,
    kind: str,
    m: int,
    seed: int,
    most: int = MODEL_TRACES,
    goes_on: Callable[[], bool] = lambda: True,
) -> ModelDirections:
    """The leading directions of such a model over at most `most` of a run's examples, drawn at random; over fewer
    where `goes_on`, asked after every PART of them, says no."""
    n = int(run.manifest["n"])
    rows, windows, fresh = (
        np.random.default_rng(seed).permutation(n)[:most],
        run.windows(),
        _fresh(model, kind, seed),
    )
    parts: list[Activations] = []
    for start in range(0, len(rows), PART):
        if start > m and not goes_on():
            break
        part = np.sort(rows[start : start + PART])
        parts.append(extract_all(fresh, windows, part, tuple(run.manifest["blocks"])))
    ids = np.concatenate([part.example_id for part in parts])
    read = Activations(ids, [shard for part in parts for shard in part.shards], parts[0].blocks)
    units = _basis_of(run, read, m, seed).basis.directions
    return ModelDirections(units, read.n, int(windows.lengths[rows[: read.n]].sum()))


def _random_model_basis(
    run: Run, model: LanguageModel, rows: np.ndarray, kind: str, k: int, seed: int
) -> tuple[Activations, RecoveredBasis]:
    activations = extract_all(_fresh(model, kind, seed), run.windows(), rows, tuple(run.manifest["blocks"]))
    return activations, _basis_of(run, activations, k, seed)


def _fresh(model: LanguageModel, kind: str, seed: int) -> LanguageModel:
    return randomised(model, seed, keep_embeddings=kind == "random-blocks")


def _basis_of(run: Run, activations: Activations, k: int, seed: int) -> RecoveredBasis:
    most = min(k, activations.n - 1, activations.d)
    return recover_basis(activations, most, run.manifest["recipe"]["block_scale"], seed)


def words_order(texts: Sequence[str]) -> np.ndarray:
    """(n,) rows from one end to the other of the axis along which the bags of words of the texts vary most: the
    leading component of their TF-IDF. Raises BasiscopeError where the texts have too few words."""
    from sklearn.decomposition import PCA

    leading = PCA(n_components=1, svd_solver="full").fit_transform(tfidf_vectors(texts))[:, 0]
    return np.argsort(-leading, kind="stable")


def bag_of_words(texts: Sequence[str], right: np.ndarray, problem: np.ndarray, seed: int) -> np.ndarray | None:
    """(n,) log-odds of being right from the words alone, each trace's by a model that has seen none of its
    problem; None where there are too few problems, or no words."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold

    if len(np.unique(problem)) < FOLDS:
        return None
    found = np.full(len(right), np.nan)
    folds = GroupKFold(FOLDS, shuffle=True, random_state=seed)
    for outside, inside in folds.split(np.zeros(len(right)), groups=problem):
        if len(np.unique(right[outside])) < 2:
            return None
        words = TfidfVectorizer(max_features=MOST_WORDS, sublinear_tf=True, token_pattern=r"[^\W\d_]+|\d|[^\w\s]")
        try:
            known = words.fit_transform([texts[i] for i in outside])
        except ValueError:
            return None
        fitted = LogisticRegression(max_iter=300).fit(known, right[outside])
        found[inside] = fitted.decision_function(words.transform([texts[i] for i in inside]))
    return found
