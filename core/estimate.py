"""What a recovery will cost, before it starts: tokens, time, memory and disk."""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np

from core.activations import TOKEN_BUDGET
from core.basis import check_k, n_resamples
from core.examples import Example, ReadReport, check_columns, read_examples, resolve_template, tokenize
from core.model import (
    choose_device,
    choose_dtype,
    load_config,
    load_tokenizer,
    locate_model,
    resolve_blocks,
    stored_bytes,
    weight_bytes,
)
from core.recovery import MAP_EXAMPLES, SHADED_PER_END, Request, model_name
from core.workspace import SHARD_BYTES, Workspace

SAMPLE = 400
EFFICIENCY = 0.5
"""Share of the speed of its largest matrix product that a whole trunk reaches."""
CPU_SOFTMAX = 5e8
"""Attention weights a second."""
START_SECONDS, MAP_SECONDS, MAP_EXAMPLE_SECONDS = 5.0, 8.0, 0.0008
PARQUET_COLUMN_BYTES = 350
KRYLOV_STEPS = 16


@dataclass(frozen=True)
class Estimate:
    """examples and tokens are counted on all rows and a sample of SAMPLE texts; `rate_from` says where the
    speed comes from."""

    rows: int
    examples: int
    tokens: int
    cut: int
    d: int
    seconds: float
    rate_from: str
    memory_bytes: int
    disk_bytes: int
    free_bytes: int
    device: str
    dtype: str
    problems: tuple[str, ...]


def estimate_recovery(request: Request, workspace: Workspace) -> Estimate:
    """Count the rows, tokenise a sample, and time one matrix product (or use an earlier run of the model).

    Raises BasiscopeError as `recover` would for a model, data or columns that cannot be used.
    """
    folder = locate_model(request.model, request.revision, weights=False)  # before the import, which takes seconds
    check_columns(request.source, request.columns)
    config = load_config(folder, request.model).get_text_config()
    tokenizer = load_tokenizer(request.model, request.revision)
    template = resolve_template(request.recipe.template, request.columns, tokenizer, request.source)
    blocks = resolve_blocks(request.recipe.blocks, config.num_hidden_layers)
    device = choose_device(request.device)
    dtype = choose_dtype(request.recipe.dtype, device)
    context = getattr(config, "max_position_embeddings", None) or request.recipe.max_tokens
    report = ReadReport()
    examples = read_examples(request.source, request.columns, template, tokenizer, report)
    sample, count = _reservoir(examples)
    texts = tokenize(sample, tokenizer, min(request.recipe.max_tokens, context), spans=False)
    lengths = np.array([len(text.ids) for text in texts])
    tokens = int(lengths.mean() * count)
    stored = stored_bytes(request.model, request.revision)
    shape = _Shape.of(config, stored, blocks[-1] + 1)
    rate, rate_from = _tokens_per_second(request, dtype, device, shape, float(lengths.mean()), workspace)
    shaded = round(count * (1 - math.exp(-2 * request.k * SHADED_PER_END / count)))  # the ends overlap
    d = len(blocks) * shape.hidden
    check_k(request.k, count, d)
    return Estimate(
        rows=report.rows,
        examples=count,
        tokens=tokens,
        cut=round(sum(text.was_cut for text in texts) / len(texts) * count),
        d=d,
        seconds=START_SECONDS
        + (tokens + 2 * shaded * lengths.mean()) / rate
        + _stability_seconds(count, request.k, _width(count, request.k, d))
        + (MAP_SECONDS + MAP_EXAMPLE_SECONDS * min(count, MAP_EXAMPLES) if request.with_map else 0),
        rate_from=rate_from,
        memory_bytes=weight_bytes(stored, config, dtype)
        + _working_memory(request, shape, dtype, device, d)
        + _stability_memory(count, request.k, _width(count, request.k, d)),
        disk_bytes=_disk(request, sample, count, tokens, shaded, d),
        free_bytes=workspace.free_bytes(),
        device=device,
        dtype=dtype,
        problems=tuple(report.sentences()),
    )


@dataclass(frozen=True)
class _Shape:
    """What the cost depends on: `blocks` of the decoder run, `parameters` of them and the embeddings."""

    hidden: int
    inner: int
    heads: int
    blocks: int
    parameters: float

    @classmethod
    def of(cls, config: Any, stored: int, blocks: int) -> _Shape:
        hidden = config.hidden_size
        width = 2 if "16" in str(getattr(config, "dtype", None)) else 4
        return cls(
            hidden,
            getattr(config, "intermediate_size", None) or 4 * hidden,
            config.num_attention_heads,
            blocks,
            stored / width * blocks / config.num_hidden_layers,
        )


def _working_memory(request: Request, shape: _Shape, dtype: str, device: str, d: int) -> int:
    """Bytes: one batch under way, two shards, and the Krylov span of the basis."""
    width = 4 if dtype == "float32" else 2
    budget = request.token_budget or TOKEN_BUDGET[device.split(":")[0]]
    batch = budget * width * (8 * shape.hidden + 2 * shape.inner)
    return int(batch + 2 * SHARD_BYTES + 4 * 2 * request.k * d * KRYLOV_STEPS)


def _width(n: int, k: int, d: int) -> int:
    """r, the directions of the span in which the basis is resampled."""
    return min(2 * k, n - 1, d)


def _stability_seconds(n: int, k: int, r: int) -> float:
    """Of the bootstrap: the moments of the rows, shared by all resamples, then for each resample its part of them,
    its eigenvectors (r^3) and the angles of all leading subspaces (k^4)."""
    each = 3e-11 * n * r**2 + 5e-10 * r**3 + 2e-10 * k**4
    return 4.5e-9 * n * r**2 + n_resamples(k) * each


def _stability_memory(n: int, k: int, r: int) -> int:
    """Bytes: the scores of the wider span in both precisions, and the moments of all resamples."""
    return 12 * n * r + 4 * n_resamples(k) * r * (r + 3)


def _disk(request: Request, sample: list[Example], count: int, tokens: int, shaded: int, d: int) -> int:
    """Bytes of the finished run: activations, tokens, scores and cosines, examples, shaded examples."""
    import pyarrow as pa

    fields = [[example.text, example.prompt, example.response, *example.columns.values()] for example in sample]
    columns = ("\n".join(map(str, column)).encode() for column in zip_longest(*fields, fillvalue=""))
    text = sum(len(pa.compress(column, codec="zstd", asbytes=True)) for column in columns) / len(sample) * count
    k = request.k
    store = 2 if request.store_dtype == "float16" else 4
    per_shaded = tokens / count * (4 * k + 2) + PARQUET_COLUMN_BYTES * (k + 4)
    rows = count * (d * store + 8 * k + 48) + 4 * tokens
    return int(rows + text + shaded * per_shaded + 4 * k * d + 20_000)


def _reservoir(examples: object) -> tuple[list[Example], int]:
    """A uniform sample of SAMPLE examples and the number of all."""
    rng = random.Random(0)
    sample: list[Example] = []
    count = 0
    for example in examples:  # type: ignore[attr-defined]
        count += 1
        if len(sample) < SAMPLE:
            sample.append(example)
        elif (slot := rng.randrange(count)) < SAMPLE:
            sample[slot] = example
    return sample, count


def _tokens_per_second(
    request: Request, dtype: str, device: str, shape: _Shape, length: float, workspace: Workspace
) -> tuple[float, str]:
    """The rate of texts of this mean length, and where it comes from."""
    name = model_name(request.model)
    for run in workspace.readable_runs():
        step, model = run.manifest["steps"].get("activations", {}), run.manifest["model"]
        there = run.manifest.get("machine", {}).get("device", device).split(":")[0]
        same = (model["name"], model["dtype"], there) == (name, dtype, device.split(":")[0])
        rate = step.get("tokens_per_second")  # not of activations that came with Basiscope
        if same and rate and step.get("tokens", 0) > 10_000:
            blocks = run.manifest["blocks"][-1] + 1
            return rate * blocks / shape.blocks, f"measured in run {run.id}"
    flops = 2 * shape.parameters + 4 * length * shape.hidden * shape.blocks
    seconds = flops / (EFFICIENCY * _flops(dtype, device, shape))
    if device == "cpu":
        seconds += shape.heads * length * shape.blocks / CPU_SOFTMAX
    return 1 / seconds, "from the speed of a matrix product"


def _flops(dtype: str, device: str, shape: _Shape) -> float:
    """Floating-point operations per second of the model's largest matrix product on a batch of tokens."""
    import torch

    kind = {"dtype": getattr(torch, dtype), "device": device}
    rows = min(4_096, 1 + 4_000_000_000 // (shape.hidden * shape.inner))
    a, b = torch.ones(rows, shape.hidden, **kind), torch.ones(shape.hidden, shape.inner, **kind)
    (a @ b).sum().item()
    start, products = time.perf_counter(), 0
    while time.perf_counter() - start < 0.2:
        (a @ b)[0, 0].item()
        products += 1
    return products * 2 * rows * shape.hidden * shape.inner / (time.perf_counter() - start)
