"""The step `recover`: from a model and a data set to a finished run, every part kept as soon as it is done."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial as partial_of
from pathlib import Path
from typing import Any

import numpy as np

from core.activations import Activations, Progress, Recipe, extract, silent, window_start
from core.architectures import pads_right
from core.basis import (
    SIGN_RULE,
    TOLERANCE,
    Basis,
    Scores,
    Stability,
    bootstrap_stability,
    check_k,
    describe_directions,
    project,
    recover_basis,
)
from core.errors import BasiscopeError
from core.examples import (
    Columns,
    DataSource,
    Example,
    ReadReport,
    as_kind,
    check_columns,
    column_kinds,
    data_files,
    data_fingerprint,
    is_local,
    kept_columns,
    read_examples,
    resolve_template,
    tokenize,
)
from core.jobs import JobReporter
from core.model import LanguageModel, check_tokens, is_folder, load_model, resolve_blocks
from core.reading import (
    LLM_EXAMPLES,
    Endpoint,
    LabelServerError,
    contrastive_label,
    count_words,
    label_by_model,
    rank_examples,
    score_tokens,
)
from core.versions import versions_of
from core.workspace import FORMAT_VERSION, STORE_DTYPES, PartialRun, Run, Workspace, content_hash, now

PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "numpy", "scipy", "scikit-learn", "umap-learn")
READ_BATCH = 256
MOST_SEED = 2**32 - 1
"""What the map takes."""
MAP_EXAMPLES = 50_000
NEIGHBOURS, EPOCHS = 15, 200
LABEL_EXAMPLES = 20_000
SHADED_PER_END = 10
CHANGED = "it changed while it was read; start again when nothing writes to it."
READING_VERSION = 2
OWN_CHOICES = ("k", "block_scale", "seed", "with_map")
"""What two runs may differ in and still share examples and activations."""


@dataclass(frozen=True)
class Request:
    """Everything a person asks of `recover`."""

    model: str
    source: DataSource
    columns: Columns
    recipe: Recipe = field(default_factory=Recipe)
    revision: str | None = None
    k: int = 10
    seed: int = 0
    device: str = "auto"
    store_dtype: str = "float32"
    with_map: bool = True
    token_budget: int | None = None

    def __post_init__(self) -> None:
        if self.k < 1:
            raise BasiscopeError(f"k = {self.k}: it must be at least 1.")
        if not 0 <= self.seed <= MOST_SEED:
            raise BasiscopeError(f"Seed {self.seed}: it must be from 0 to {MOST_SEED}.")
        if self.store_dtype not in STORE_DTYPES:
            raise BasiscopeError(f"Store dtype {self.store_dtype!r} is not one of {', '.join(STORE_DTYPES)}.")


def recover(
    request: Request, workspace: Workspace, progress: Progress = silent, lender: Path | None = None
) -> Run:
    """Recover the basis, or return the finished run where there is one; an interrupted run continues.

    Where the folder `lender` has the activations of this model, data and recipe (`lend` wrote it), they are taken
    from there. Raises BasiscopeError for everything that a person can mend.
    """
    check_columns(request.source, request.columns)
    progress("model", 0, 1)
    model = load_model(request.model, request.revision, request.recipe.dtype, request.device)
    pads_right(model)  # a model that looks ahead is refused before anything is read
    progress("model", 1, 1)
    template = resolve_template(request.recipe.template, request.columns, model.tokenizer, request.source)
    blocks = resolve_blocks(request.recipe.blocks, len(model.blocks))
    limit = min(request.recipe.max_tokens, model.context or request.recipe.max_tokens)
    recipe = replace(request.recipe, template=template, dtype=model.dtype, max_tokens=limit)
    identity = _identity(request, model, recipe, blocks)
    if done := workspace.finished(identity):
        return done
    shared = content_hash({key: value for key, value in identity.items() if key not in OWN_CHOICES})
    asked = {"model": model_name(request.model), "data": request.source.path}
    with workspace.start(identity, shared, asked, lender) as partial:
        if done := workspace.finished(identity):  # by another process, since the first look
            partial.discard()
            return done
        progress = _also_into(partial, progress)
        timer = _Timer(partial)
        if not partial.is_read:
            with timer.step("read"):
                _read(partial, request, model, recipe, identity["data"], progress)
        try:
            check_k(request.k, len(partial.windows()), len(blocks) * model.hidden_size)
        except BasiscopeError:
            partial.discard()
            raise
        _extract(partial, model, blocks, request.token_budget, progress)
        results = _analyse(partial, request, recipe, blocks, str(model.device), timer, progress)
        if request.with_map:
            with timer.step("map"):
                _draw_map(partial, results.scores, request.seed, progress)
        facts = partial.facts()
        partial.save_manifest(
            {
                "format_version": FORMAT_VERSION,
                "run": partial.folder.name,
                "created": now(),
                "model": _model_facts(model),
                "data": facts["data"],
                "recipe": recipe.as_dict(),
                "n": results.activations.n,
                "d": results.activations.d,
                "k": request.k,
                "blocks": list(blocks),
                "seeds": {"basis": request.seed, "bootstrap": request.seed, "map": request.seed},
                "store_dtype": request.store_dtype,
                "basis": _basis_facts(results),
                "versions": _versions(),
                "machine": {"platform": platform.platform(), "device": str(model.device)},
                "steps": partial.steps(),
                "warnings": [
                    *model.notes,
                    *facts["problems"],
                    *_warnings(facts, request, recipe, results, model),
                ],
                "shared": shared,
                "request": identity,
            }
        )
        _read_directions(Run(partial.folder), model, progress)
        return workspace.finish(partial)


def _also_into(partial: PartialRun, progress: Progress) -> Progress:
    """The same Progress, which the run's folder holds too, for those who look from another process."""
    beside = JobReporter(partial.folder)

    def both(step: str, done: int, total: int) -> None:
        with suppress(OSError):  # a full disk has its own sentence
            beside.progress(step, done, total)
        progress(step, done, total)

    return both


def _identity(request: Request, model: LanguageModel, recipe: Recipe, blocks: tuple[int, ...]) -> dict[str, Any]:
    """Everything that determines a run, and nothing else."""
    return _reading(request, recipe) | {
        "format_version": FORMAT_VERSION,
        "model": model.fingerprint,
        "data": data_fingerprint(request.source),
        "limit": request.source.limit,
        "columns": request.columns.named(),
        "pooling": recipe.pooling,
        "blocks": list(blocks),
        "block_scale": recipe.block_scale,
        "max_tokens": recipe.max_tokens,
        "template": recipe.template,
        "dtype": recipe.dtype,
        "store_dtype": request.store_dtype,
        "k": request.k,
        "seed": request.seed,
        "with_map": request.with_map,
    }


def _reading(request: Request, recipe: Recipe) -> dict[str, int]:
    """How data is read, where version 0.1 read some of it otherwise: chats, and files but JSON Lines. The others
    keep the ids that their runs have."""
    files = data_files(request.source.path) if is_local(request.source.path) else []
    is_lines = bool(files) and all(file.name.endswith((".jsonl", ".jsonl.gz", ".ndjson")) for file in files)
    same = is_lines and recipe.template == "plain" and not request.columns.messages
    return {} if same else {"reading": READING_VERSION}


def model_name(model: str) -> str:
    """A hub id as it is, a folder by its absolute path, so that a run finds its model from anywhere."""
    return str(Path(model).expanduser().resolve()) if is_folder(model) else model


# --- the parts ------------------------------------------------------------------------------------------


def _read(
    partial: PartialRun,
    request: Request,
    model: LanguageModel,
    recipe: Recipe,
    fingerprint: str,
    progress: Progress,
) -> None:
    """Read, tokenise and store the examples; count every problem. Raises BasiscopeError where the data is not, or
    no longer, what `fingerprint` says."""
    report, usable = ReadReport(), _Counts()
    kinds = column_kinds(request.source)
    spans = [name for name in ("prompt", "response") if getattr(request.columns, name)]
    if request.columns.messages:
        spans = ["prompt", "response"]
    examples = read_examples(request.source, request.columns, recipe.template, model.tokenizer, report)
    with partial.token_writer() as write_tokens:

        def rows() -> Iterator[dict[str, Any]]:
            for batch in _batches(examples):
                texts = tokenize(batch, model.tokenizer, recipe.max_tokens, recipe.pooling == "mean-response")
                for example, tokens in zip(batch, texts, strict=True):
                    if tokens.was_cut:
                        report.count(f"cut at {recipe.max_tokens:,} tokens", example.example_id)
                    first = window_start(tokens, recipe.pooling)
                    if first is None:
                        report.count(f"left out, no token to pool ({recipe.pooling})", example.example_id)
                        continue
                    check_tokens(model, tokens.ids, f"Data {request.source.path}: row {example.example_id}")
                    usable.add(example, len(tokens.ids), report)
                    write_tokens(example.example_id, tokens.ids, first)
                    kept = kept_columns(example.columns)
                    if not kept.keys() <= kinds.keys():
                        raise BasiscopeError(f"Data {request.source.path}: {CHANGED}")
                    yield {
                        "example_id": example.example_id,
                        "text": example.text,
                        **{name: getattr(example, name) for name in spans},
                        "n_tokens": len(tokens.ids),
                        **{name: as_kind(value, kinds[name]) for name, value in kept.items()},
                    }
                progress("read", report.rows, 0)

        partial.write_examples(rows(), kinds, spans)
        if usable.n < 2:
            raise BasiscopeError(
                f"Data {request.source.path}: {usable.n} of {report.rows:,} rows can be used, at least 2 are "
                f"needed. {' '.join(report.sentences())}"
            )
    if data_fingerprint(request.source) != fingerprint:
        raise BasiscopeError(f"Data {request.source.path}: {CHANGED}")
    source = vars(request.source) | {
        "fingerprint": fingerprint,
        "columns": request.columns.named(),
        "rows": report.rows,
        "examples": usable.n,
        "tokens": usable.tokens,
        "json_columns": [name for name, kind in kinds.items() if kind == "json"],
    }
    partial.save_facts({"data": source, "problems": report.sentences()})


class _Counts:
    """Examples and tokens so far; duplicates by a 64-bit hash of the text."""

    def __init__(self) -> None:
        self.n = 0
        self.tokens = 0
        self._hashes: set[int] = set()

    def add(self, example: Example, n_tokens: int, report: ReadReport) -> None:
        self.n += 1
        self.tokens += n_tokens
        key = hash(example.text)
        if key in self._hashes:
            report.count("same text as an earlier row (kept)", example.example_id)
        self._hashes.add(key)


def _batches(examples: Iterator[Example]) -> Iterator[list[Example]]:
    batch: list[Example] = []
    for example in examples:
        if batch and (len(batch) == READ_BATCH or example.special_tokens != batch[0].special_tokens):
            yield batch
            batch = []
        batch.append(example)
    if batch:
        yield batch


def _extract(
    partial: PartialRun,
    model: LanguageModel,
    blocks: tuple[int, ...],
    token_budget: int | None,
    progress: Progress,
) -> None:
    """Pool what is not on disk yet, in the batches that one process would have made: the result is the same to the
    last bit however often it was stopped. Progress in tokens. Keeps seconds, tokens and tokens per second, summed
    over all processes that had a part."""
    windows = partial.windows()
    order = np.argsort(-windows.lengths, kind="stable")
    missing = ~np.isin(windows.example_id[order], partial.stored_ids())
    total = int(windows.lengths.sum())
    done = total - int(windows.lengths[order[missing]].sum())
    earlier = partial.steps().get("activations", {"seconds": 0.0, "tokens": 0})
    if not missing.any() and earlier["tokens"]:
        return
    fresh = 0
    progress("activations", done, total)
    start = time.monotonic()
    try:
        for stretch in np.split(np.arange(len(order)), np.flatnonzero(np.diff(missing)) + 1):
            if not missing[stretch[0]]:
                continue
            before = int(windows.example_id[order[stretch[0] - 1]]) if stretch[0] else None
            batches = extract(model, windows, order[stretch], blocks, token_budget)
            with closing(partial.store(batches, windows.example_id, before)) as stored:
                for n_tokens in stored:
                    fresh += n_tokens
                    progress("activations", done + fresh, total)
    finally:
        seconds = earlier.get("seconds", 0.0) + max(time.monotonic() - start, 1e-6)
        tokens = earlier["tokens"] + fresh
        with suppress(OSError):  # a full disk has its own sentence
            rate = round(tokens / seconds, 1)
            whole = total if done + fresh == total else tokens  # a killed process could not say what it did
            facts = {"seconds": round(seconds, 3), "tokens": whole, "tokens_per_second": rate}
            partial.save_step("activations", facts)


@dataclass(frozen=True)
class _Results:
    activations: Activations
    basis: Basis
    scores: Scores
    stability: Stability


def _analyse(
    partial: PartialRun,
    request: Request,
    recipe: Recipe,
    blocks: tuple[int, ...],
    device: str,
    timer: _Timer,
    progress: Progress,
) -> _Results:
    """Basis, scores and stability, stored. Computed on the CPU where the GPU has no room, or no float64."""
    import torch

    activations = partial.activations(blocks)
    recover_on = partial_of(
        recover_basis, activations, request.k, recipe.block_scale, request.seed, progress=progress
    )
    device = device if device.startswith("cuda") else "cpu"
    with timer.step("basis"):
        try:
            recovered = recover_on(device=device)
        except torch.OutOfMemoryError:
            device = "cpu"
            recovered = recover_on(device=device)
    with timer.step("scores"):
        try:
            projected = project(activations, recovered, device, progress)
        except torch.OutOfMemoryError:
            projected = project(activations, recovered, "cpu", progress)
    with timer.step("stability"):
        stability = bootstrap_stability(projected, recovered.basis, seed=request.seed, progress=progress)
    windows = partial.windows()
    lengths = dict(zip(windows.example_id.tolist(), windows.lengths.tolist(), strict=True))
    aligned = np.array([lengths[i] for i in projected.scores.example_id.tolist()])
    directions = describe_directions(recovered.basis, projected.scores, stability, aligned)
    partial.save_results(recovered.basis, projected.scores, directions)
    return _Results(activations, recovered.basis, projected.scores, stability)


def _draw_map(partial: PartialRun, scores: Scores, seed: int, progress: Progress) -> None:
    """UMAP of the scores, of a random MAP_EXAMPLES where there are more (McInnes et al. 2018)."""
    progress("map", 0, 1)
    order = np.argsort(scores.example_id, kind="stable")
    values = scores.scores[order]
    n = len(values)
    points = np.full((n, 2), np.nan, dtype=np.float32)
    rows = np.arange(n)
    if n > MAP_EXAMPLES:
        rows = np.sort(np.random.default_rng(seed).choice(n, MAP_EXAMPLES, replace=False))
    if n > NEIGHBOURS:
        points[rows] = _umap(values[rows], seed)
    partial.save_map(scores.example_id[order], points)
    progress("map", 1, 1)


def _umap(values: np.ndarray, seed: int) -> np.ndarray:
    """Exact neighbours: UMAP's own search takes tens of seconds to compile, and below 4,096 points a Python call
    for every pair."""
    import warnings

    from sklearn.neighbors import NearestNeighbors
    from umap import UMAP

    distances, neighbours = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(values).kneighbors(values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a seed means one thread; UMAP says so every time
        init = "spectral" if len(values) > 100 else "random"
        drawn = UMAP(
            NEIGHBOURS, n_epochs=EPOCHS, random_state=seed, init=init, precomputed_knn=(neighbours, distances)
        )
        points = drawn.fit_transform(values)
    return np.asarray(points, dtype=np.float32)


def _read_directions(run: Run, model: LanguageModel, progress: Progress) -> None:
    """Labels from the texts for all directions, and token scores of the examples at their ends."""
    label_run(run, list(range(1, run.k + 1)), progress, over_person=False)
    shade_examples(run, model, extreme_examples(run), progress)


def label_run(run: Run, directions: list[int], progress: Progress = silent, *, over_person: bool = True) -> None:
    """Give the directions (from 1) labels from the texts, or from the responses where only these are pooled, of a
    random LABEL_EXAMPLES where there are more. Unless `over_person`, labels that a person has set stay, also those
    set meanwhile."""
    windows, scores = run.windows(), run.scores()
    lengths = windows.lengths - (windows.first if run.pooled_text == "response" else 0)
    rows = np.arange(len(lengths))
    if len(rows) > LABEL_EXAMPLES:
        rows = np.sort(np.random.default_rng(0).choice(len(rows), LABEL_EXAMPLES, replace=False))
    progress("labels", 0, len(directions))
    counts = count_words(run.texts(rows, run.pooled_text))
    lengths = lengths[rows]
    for done, j in enumerate(directions):
        label = contrastive_label(counts, scores[f"d{j}"].to_numpy()[rows], lengths)
        run.save_label(j, label, over_person=over_person)
        progress("labels", done + 1, len(directions))


def label_by_endpoint(
    run: Run, directions: list[int], progress: Progress = silent, *, over_person: bool = True
) -> None:
    """Give the directions (from 1) labels by the language model of the environment; `over_person` as in label_run.

    Raises BasiscopeError where none is configured, at once where the server cannot be used, and in the end where
    answers could not be; the labels that came are kept.
    """
    endpoint = Endpoint.from_environment()
    if endpoint is None:
        raise BasiscopeError("No label server: set BASISCOPE_LLM_URL and BASISCOPE_LLM_MODEL.")
    scores, failed = run.scores(), dict[int, str]()
    for done, j in enumerate(directions):
        progress("labels", done, len(directions))
        ends = [
            run.texts(rank_examples(scores[f"d{j}"].to_numpy(), polarity, LLM_EXAMPLES), run.pooled_text)
            for polarity in (1, -1)
        ]
        try:
            label = label_by_model(endpoint, *ends)
        except LabelServerError:
            raise
        except BasiscopeError as error:
            failed[j] = str(error)
        else:
            run.save_label(j, label, over_person=over_person)
        progress("labels", done + 1, len(directions))
    if failed:
        first, why = next(iter(failed.items()))
        raise BasiscopeError(
            f"{len(failed)} of {len(directions)} directions got no label; the others are kept. "
            f"Direction {first}: {why}"
        )


def extreme_examples(run: Run, per_end: int = SHADED_PER_END) -> list[int]:
    """Ids of the examples at both ends of every direction."""
    scores = run.scores()
    ids = scores["example_id"].to_numpy()
    chosen: dict[int, None] = {}
    for j in range(1, run.k + 1):
        for polarity in (1, -1):
            chosen.update(dict.fromkeys(ids[rank_examples(scores[f"d{j}"].to_numpy(), polarity, per_end)]))
    return [int(i) for i in chosen]


def shade_examples(run: Run, model: LanguageModel, example_ids: list[int], progress: Progress = silent) -> None:
    """Compute and keep the token scores of examples that have none. Raises BasiscopeError for an unknown id."""
    windows, basis, blocks = run.windows(), run.basis(), tuple(run.manifest["blocks"])
    position = {int(example_id): i for i, example_id in enumerate(windows.example_id)}
    for done, example_id in enumerate(example_ids):
        if example_id not in position:
            raise BasiscopeError(f"Run {run.id} has no example {example_id}.")
        if run.lacks_token_scores(example_id):
            i = position[example_id]
            run.save_token_scores(
                score_tokens(model, basis, blocks, windows.tokens(i), int(windows.first[i]), example_id)
            )
        progress("tokens", done + 1, len(example_ids))


def load_run_model(run: Run, device: str = "auto", dtype: str | None = None) -> LanguageModel:
    """The model of a run, in the run's data type or another. Raises BasiscopeError where its files are no longer
    the ones of the run."""
    facts = run.manifest["model"]
    model = load_model(facts["name"], facts["revision"], dtype or facts["dtype"], device)
    check_model(run, model)
    return model


def check_model(run: Run, model: LanguageModel) -> None:
    """Raises BasiscopeError where a model is not the one of the run."""
    facts = run.manifest["model"]
    if model.fingerprint != facts["fingerprint"]:
        raise BasiscopeError(
            f"Model {facts['name']} has changed since run {run.id} was recovered; recover it again."
        )


# --- what the manifest says -----------------------------------------------------------------------------


class _Timer:
    """Seconds per step, kept with the run under way."""

    def __init__(self, partial: PartialRun) -> None:
        self._partial = partial

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self._partial.save_step(name, {"seconds": round(time.monotonic() - start, 3)})


def _model_facts(model: LanguageModel) -> dict[str, Any]:
    return {
        "name": model_name(model.name),
        "revision": model.revision,
        "fingerprint": model.fingerprint,
        "type": model.module.config.model_type,
        "parameters": model.module.num_parameters(),
        "n_blocks": len(model.blocks),
        "hidden_size": model.hidden_size,
        "context": model.context,
        "dtype": model.dtype,
    }


def _basis_facts(results: _Results) -> dict[str, Any]:
    return {
        "total_variance": results.basis.total_variance,
        "residuals": [float(f"{value:.3g}") for value in results.basis.residuals],
        "sign_rule": SIGN_RULE,
        "resamples": results.stability.resamples,
        "last_group_is_open": bool(results.stability.last_is_open),
    }


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | versions_of(PACKAGES)


def _warnings(
    facts: dict[str, Any], request: Request, recipe: Recipe, results: _Results, model: LanguageModel
) -> list[str]:
    found = []
    if not pads_right(model):
        found.append("padding changes what the model makes of a text, so only texts of one length share a batch")
    if recipe.max_tokens < request.recipe.max_tokens and any("cut at" in problem for problem in facts["problems"]):
        found.append(f"the model's context is {recipe.max_tokens:,} tokens, shorter than the token limit")
    if (worst := float(results.basis.residuals.max())) > 100 * TOLERANCE:
        found.append(f"the basis did not converge: largest relative residual {worst:.1e}")
    return found
