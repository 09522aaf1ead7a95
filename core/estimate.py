"""What a recovery will cost, before it starts: tokens, time, memory and disk."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

import numpy as np

from core.activations import TOKEN_BUDGET
from core.examples import Example, ReadReport, read_examples, resolve_template, tokenize
from core.model import choose_device, choose_dtype, load_tokenizer, locate_model, resolve_blocks
from core.recovery import Request
from core.workspace import SHARD_BYTES, Workspace

SAMPLE = 400
EFFICIENCY = 0.5
"""Share of the speed of one large matrix product that a whole trunk reaches."""


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
    from transformers import AutoConfig

    folder = locate_model(request.model, request.revision)
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).get_text_config()
    tokenizer = load_tokenizer(request.model, request.revision)
    template = resolve_template(request.recipe.template, request.columns, tokenizer)
    blocks = resolve_blocks(request.recipe.blocks, config.num_hidden_layers)
    device = choose_device(request.device)
    dtype = choose_dtype(request.recipe.dtype, device)
    context = getattr(config, "max_position_embeddings", None) or request.recipe.max_tokens
    report = ReadReport()
    examples = read_examples(request.source, request.columns, template, tokenizer, report)
    sample, count = _reservoir(examples)
    limit = min(request.recipe.max_tokens, context)
    texts = tokenize(sample, tokenizer, limit, spans=False) if sample else []
    lengths = np.array([len(text.ids) for text in texts])
    tokens = int(lengths.mean() * count)
    d = len(blocks) * config.hidden_size
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    parameters = weights // 2 if _stored_half(config) else weights // 4
    rate, rate_from = _tokens_per_second(request.model, dtype, device, parameters, workspace)
    width = 2 if dtype != "float32" else 4
    budget = request.token_budget or TOKEN_BUDGET[device.split(":")[0]]
    working = budget * width * (8 * config.hidden_size + 2 * getattr(config, "intermediate_size", 0) or 0)
    store = 2 if request.store_dtype == "float16" else 4
    return Estimate(
        rows=report.rows,
        examples=count,
        tokens=tokens,
        cut=round(sum(text.was_cut for text in texts) / len(texts) * count),
        d=d,
        seconds=tokens / rate * (blocks[-1] + 1) / config.num_hidden_layers,
        rate_from=rate_from,
        memory_bytes=int(parameters * width + working + 2 * SHARD_BYTES + 4 * 4 * request.k * d * 8),
        disk_bytes=count * d * store + tokens * 5,
        free_bytes=workspace.free_bytes(),
        device=device,
        dtype=dtype,
        problems=tuple(report.sentences()),
    )


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


def _stored_half(config: object) -> bool:
    return "16" in str(getattr(config, "dtype", None))


def _tokens_per_second(
    name: str, dtype: str, device: str, parameters: int, workspace: Workspace
) -> tuple[float, str]:
    for run in workspace.runs():
        manifest = run.manifest
        step = manifest["steps"].get("activations", {})
        same = manifest["model"]["name"] == name and manifest["model"]["dtype"] == dtype
        if same and step.get("tokens", 0) > 10_000:
            return step["tokens_per_second"], f"measured in run {run.id}"
    return EFFICIENCY * _flops(dtype, device) / (2 * parameters), "from the speed of a matrix product"


def _flops(dtype: str, device: str) -> float:
    """Floating-point operations per second of one large matrix product."""
    import torch

    size = 1_024 if device == "cpu" else 4_096
    a = torch.ones(size, size, dtype=getattr(torch, dtype), device=device)
    (a @ a).sum().item()
    start = time.perf_counter()
    for _ in range(4):
        product = a @ a
    product.sum().item()
    return 4 * 2 * size**3 / (time.perf_counter() - start)
