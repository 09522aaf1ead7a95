"""The proxy SFT: a short LoRA training on examples along each direction, against random ones of as many tokens.

Training is TRL's (the extra `train`), the adapter PEFT's; the model's own weights are never changed. An arm is
judged by the loss on held-out solutions, and by Pass@1 where the problems have answers to verify.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from core import __version__
from core.activations import Progress, silent
from core.errors import BasiscopeError
from core.evaluation import Interval
from core.model import LanguageModel
from core.selection.choose import choose
from core.selection.pool import Constraints, Pool, Rule, pool_of
from core.usefulness.development import Solutions, losses
from core.usefulness.evidence import Control, Cost, Effect, Evidence, Measure, false_discovery, p_outlier
from core.usefulness.first_order import by_problem
from core.workspace import Run

GAIN = Measure("loss", "loss on held-out solutions is lower by", "nats per token")
PACKAGES = ("torch", "transformers", "trl", "peft", "numpy", "scipy")
IGNORED = -100


@dataclass(frozen=True)
class SftRequest:
    """How to train. directions: from 1; examples: of each selection; random: how many random selections; seeds: of
    the training, for each selection along a direction; the other numbers as PEFT and TRL take them."""

    directions: tuple[int, ...]
    examples: int = 64
    random: int = 8
    seeds: int = 2
    epochs: float = 1.0
    rate: float = 2e-4
    rank: int = 8
    batch: int = 8
    seed: int = 0
    asked: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.random < 3 or self.seeds < 1 or self.examples < 1:
            raise BasiscopeError("SFT: at least 1 example, 1 seed and 3 random selections.")


@dataclass(frozen=True)
class Trained:
    """What one training left: losses (problems,) on the held-out solutions, after `tokens` tokens of training."""

    name: str
    seed: int
    losses: np.ndarray
    tokens: int


def selections(pool: Pool, request: SftRequest) -> dict[str, np.ndarray]:
    """Name -> rows of the pool: each direction and polarity by its extremes, and random ones of as many tokens as
    the middle of these, names `random 1` and so on."""
    found = {}
    for j in request.directions:
        for sign, polarity in ((1, "+"), (-1, "-")):
            rule = Rule("along", directions=(sign * j,))
            found[f"{j}{polarity}"] = choose(pool, rule, Constraints(budget=request.examples), _no_texts).rows
    tokens = int(np.median([pool.lengths[rows].sum() for rows in found.values()]))
    for i in range(request.random):
        rule = Rule("random", seed=request.seed + i)
        found[f"random {i + 1}"] = choose(pool, rule, Constraints(budget_tokens=tokens), _no_texts).rows
    return found


def _no_texts() -> np.ndarray:
    """For rules that read none."""
    return np.zeros(0)


def train_proxy(
    run: Run,
    model: LanguageModel,
    solutions: Solutions,
    request: SftRequest,
    notes: Sequence[str] = (),
    progress: Progress = silent,
) -> Evidence:
    """Train on every selection and compare the losses on the solutions. Raises BasiscopeError where TRL or PEFT is
    missing, or the pool is too small."""
    check_installed()
    start = time.monotonic()
    chosen = selections(pool_of(run), request)
    plan = [(name, s) for name in chosen for s in range(1 if name.startswith("random") else request.seeds)]
    before = by_problem(losses(model, solutions), solutions)
    made: list[Trained] = []
    progress("training", 0, len(plan))
    for name, seed in plan:
        made.append(trained(run, model, solutions, chosen[name], request, name, seed))
        progress("training", len(made), len(plan))
    effects, control = judge(made, before)
    dropped = [f"{count:,} solutions left out: {why}" for why, count in solutions.left_out.items()]
    sizes, tokens = [len(rows) for rows in chosen.values()], sum(one.tokens for one in made)
    return Evidence(
        "sft",
        run.id,
        GAIN.name,
        (GAIN,),
        tuple(effects),
        (control,),
        {key: value for key, value in asdict(request).items() if key != "asked"} | request.asked,
        Cost(
            round(time.monotonic() - start, 3),
            tokens + solutions.tokens * (1 + len(made)),
        ),
        (
            f"{len(plan):,} trainings on {min(sizes):,} to {max(sizes):,} examples, {solutions.problems:,} "
            f"held-out problems; before training the loss is {before.mean():.3f} nats per token",
            *dropped,
            *notes,
        ),
        {
            "trainings": [{"name": one.name, "seed": one.seed, "loss": float(one.losses.mean())} for one in made],
            "before": float(before.mean()),
            "seed": request.seed,
            "model": run.manifest["model"]["fingerprint"],
            "versions": {"basiscope": __version__} | {name: version(name) for name in PACKAGES},
        },
    )


def check_installed() -> None:
    for name in ("trl", "peft"):
        try:
            version(name)
        except PackageNotFoundError as error:
            raise BasiscopeError(
                f"The proxy sft needs {name}: install the extra with pip install 'basiscope[train]'."
            ) from error


def trained(
    run: Run,
    model: LanguageModel,
    solutions: Solutions,
    rows: np.ndarray,
    request: SftRequest,
    name: str,
    seed: int,
) -> Trained:
    """Train an adapter on the examples at `rows`, measure it, and take it off again."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers.utils import logging
    from trl import SFTConfig, SFTTrainer

    logging.set_verbosity_error()
    windows = run.windows()
    is_response = run.manifest["recipe"]["pooling"] == "mean-response"
    texts = []
    for row in rows:
        ids, first = windows.tokens(row).tolist(), int(windows.first[row]) if is_response else 0
        texts.append({"input_ids": ids, "labels": [IGNORED] * first + ids[first:]})
    torch.manual_seed(request.seed + seed)
    lora = LoraConfig(
        r=request.rank, lora_alpha=2 * request.rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(model.module, lora)
    try:
        with tempfile.TemporaryDirectory() as folder:
            arguments = SFTConfig(
                output_dir=folder,
                num_train_epochs=request.epochs,
                per_device_train_batch_size=request.batch,
                learning_rate=request.rate,
                lr_scheduler_type="cosine",
                seed=request.seed + seed,
                max_length=None,
                gradient_checkpointing=False,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                logging_strategy="no",
                use_cpu=model.device.type == "cpu",
                bf16=model.dtype == "bfloat16",
            )
            tokenizer = model.tokenizer
            if tokenizer.pad_token is None:
                tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
            SFTTrainer(
                adapted, args=arguments, train_dataset=Dataset.from_list(texts), processing_class=tokenizer
            ).train()
        adapted.eval()
        found = by_problem(losses(replace(model, module=adapted), solutions), solutions)  # type: ignore[arg-type]
    finally:
        adapted.unload()
        model.module.eval().requires_grad_(False)
    tokens = round(request.epochs * sum(len(text["input_ids"]) for text in texts))
    return Trained(name, seed, found, tokens)


def judge(made: Sequence[Trained], before: np.ndarray) -> tuple[list[Effect], Control]:
    """Effects of the selections along directions: how much lower the loss is than after random ones. Intervals
    hold the differences between problems, random selections and seeds. A selection counts where it is further off
    than every random one, and no likely draw from the normal distribution that these are of."""
    from scipy.stats import t

    by_name: dict[str, list[Trained]] = {}
    for one in made:
        by_name.setdefault(one.name, []).append(one)
    arms = [name for name in by_name if not name.startswith("random")]
    chance = np.stack([by_name[name][0].losses for name in by_name if name.startswith("random")])
    null = chance.mean(axis=0).mean() - chance.mean(axis=1)
    gains = {name: chance.mean(axis=0) - np.mean([one.losses for one in by_name[name]], axis=0) for name in arms}
    values = np.array([gains[name].mean() for name in arms])
    outlying = p_outlier(values, null)
    adjusted, furthest = false_discovery(outlying), float(np.abs(null).max())
    effects = []
    for i, name in enumerate(arms):
        gain, seeds = gains[name], len(by_name[name])
        spread = float(null.var(ddof=1)) * (1 / len(null) + 1 / seeds)
        problems = float(gain.var(ddof=1)) / len(gain) if len(gain) > 1 else math.nan
        half = float(t.ppf(0.975, len(null) - 1)) * math.sqrt(spread + problems)
        interval = Interval(float(values[i]), float(values[i]) - half, float(values[i]) + half, len(gain))
        direction, polarity = int(name[:-1]), name[-1]
        numbers = (float(outlying[i]), float(adjusted[i]), abs(float(values[i])) - furthest)
        effects.append(Effect(direction, polarity, GAIN.name, interval, *numbers))
    level = Interval(furthest, float(null.min()), float(null.max()), len(null))
    detail = f"the furthest of {len(null)} random selections of as many tokens; training alone gives "
    detail += f"{before.mean() - chance.mean():+.3g} nats per token"
    return effects, Control("random selections", GAIN.name, level, detail)
