"""The proxy SFT: a short LoRA training on examples along each direction, against random ones and other controls.

All selections have as many tokens and are trained with the same seeds: what a seed does to all of them alike is in
no difference between them.

Training is TRL's (the extra `train`), the adapter PEFT's; the model's own weights are never changed. An arm is
judged by the loss on held-out solutions, and where it is asked for by Pass@1 on their problems.
"""

from __future__ import annotations

import math
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from core.activations import Progress, silent
from core.errors import BasiscopeError
from core.evaluation import Interval, verifier
from core.evaluation.passk import Tally
from core.evaluation.problems import Problem
from core.evaluation.rollouts import UNSTEERED, Rollout, roll_out
from core.evaluation.verifiers import VERSION
from core.model import LanguageModel
from core.reading import rank_examples
from core.selection.pool import Pool, Rule, pool_of
from core.selection.rules import check_rule
from core.steering.generation import Sampling
from core.usefulness.controls import check_models, random_model_scores, random_scores, words_order
from core.usefulness.development import Solutions, guess_notes, losses
from core.usefulness.evidence import Control, Cost, Effect, Evidence, Measure, false_discovery, p_outlier
from core.usefulness.first_order import by_problem
from core.versions import versions_of
from core.workspace import Run, Workspace, now

LOSS = Measure("loss", "loss on held-out solutions is lower by", "nats per token")
PASS = Measure("pass@1", "change of Pass@1", "Pass@1")
PACKAGES = ("torch", "transformers", "trl", "peft", "numpy", "scipy")
NOT_APPLIED = (
    "shuffled verdicts do not apply: none enters; random models choose selections where --controls names them, as "
    "their own loss cannot be compared with a trained model's"
)
IGNORED = -100
SLACK = 0.01
"""The share of its tokens that a selection may lack."""
RANDOM_DIRECTIONS = 4
RANDOM_DIRECTION = "random direction "
ENDS = {
    "length alone": ("the longest", "the shortest"),
    "bag of words": ("the + end of the texts' TF-IDF", "the - end of the texts' TF-IDF"),
    "random model": ("the + end of the first direction of a model with random weights", "its - end"),
    "random blocks": ("the + end of the first direction of one with random blocks", "its - end"),
}
"""Controls that choose a selection from each of their ends, and what these are."""
BEYOND = "what lies on its side of 0 has to be beyond it by the 95% interval of their difference"


@dataclass(frozen=True)
class Effort:
    """What measuring took: tokens run, and texts generated, how many of these were cut at the token limit, and how
    many could not be verified and count as not right."""

    tokens: int = 0
    texts: int = 0
    cut: int = 0
    unverified: int = 0

    def __add__(self, other: Effort) -> Effort:
        return Effort(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Answers:
    """What Pass@1 is measured on: problems with their prompts' token ids by problem id, r texts each. left_out:
    why other problems are not among them, and how many."""

    problems: tuple[Problem, ...]
    prompts: Mapping[int, tuple[int, ...]]
    verifier: str
    r: int
    sampling: Sampling
    left_out: dict[str, int] = field(default_factory=dict)

    def measure(self, model: LanguageModel) -> tuple[np.ndarray, Effort, tuple[Rollout, ...]]:
        """(problems,) Pass@1, what it took, and the texts."""
        batches = roll_out(model, self.problems, self.prompts, verifier(self.verifier), self.r, self.sampling)
        made = [one for batch in batches for one in batch]
        tokens = sum((one.n_tokens or 0) + len(self.prompts[one.problem_id]) for one in made)
        effort = Effort(tokens, len(made), sum(one.cut for one in made), sum(one.right is None for one in made))
        return Tally.of(made).pass_at(1), effort, tuple(made)


@dataclass(frozen=True)
class SftRequest:
    """How to train. directions: from 1; examples: every selection has as many tokens as so many examples of mean
    length; random: how many random selections; seeds: how often each selection is trained, the controls', too;
    models: which of MODELS choose selections, too; the other numbers as PEFT and TRL take them."""

    directions: tuple[int, ...]
    examples: int = 64
    random: int = 8
    seeds: int = 2
    epochs: float = 1.0
    rate: float = 2e-4
    rank: int = 8
    batch: int = 8
    seed: int = 0
    models: tuple[str, ...] = ()
    asked: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.random < 3 or self.seeds < 1 or self.examples < 1:
            raise BasiscopeError("SFT: at least 1 example, 1 seed and 3 random selections.")
        check_models(self.models)

    @property
    def trainings(self) -> int:
        """How many there will be, the controls' among them."""
        ends = len(self.directions) + 2 + len(self.models)
        return self.seeds * (2 * ends + self.random + RANDOM_DIRECTIONS)


@dataclass(frozen=True)
class Trained:
    """What one training left: measure -> (problems,) what it came to, the loss negative so that more is better;
    tokens: trained on and run to measure; effort: of measuring alone; texts: those of Pass@1."""

    name: str
    seed: int
    outcomes: dict[str, np.ndarray]
    tokens: int
    effort: Effort = Effort()
    texts: tuple[Rollout, ...] = ()


def selections(pool: Pool, request: SftRequest) -> dict[str, np.ndarray]:
    """Name -> rows of the pool: each direction and polarity from its end inwards, and random ones, names
    `random 1` and so on; all of the same tokens, to within SLACK where the pool has texts as short as that.

    Raises BasiscopeError where the pool has no more than the examples asked for.
    """
    check_rule(pool, Rule("along", directions=request.directions))
    if request.examples >= pool.n:
        raise BasiscopeError(
            f"SFT: selections of {request.examples:,} examples do not differ where run {pool.run} has {pool.n:,}. "
            "Lower --examples."
        )
    orders = {
        f"{j}{polarity}": rank_examples(pool.scores[:, j - 1], sign)
        for j in request.directions
        for sign, polarity in ((1, "+"), (-1, "-"))
    }
    for i in range(request.random):
        orders[f"random {i + 1}"] = np.random.default_rng(request.seed + i).permutation(pool.n)
    return _filled(pool, orders, request)


def control_selections(run: Run, model: LanguageModel, pool: Pool, request: SftRequest) -> dict[str, np.ndarray]:
    """Name -> rows of selections of the same tokens as those along directions that ask less: by length alone, by
    words alone, along random directions of the model, and along the first direction of random models."""
    ends = {"length alone": np.argsort(-pool.lengths, kind="stable")}
    with suppress(BasiscopeError):  # too few words
        ends["bag of words"] = words_order(run.examples(["text"])["text"].fillna("").tolist())
    every = np.arange(pool.n)
    for kind in request.models:
        scores = random_model_scores(run, model, every, kind, request.seed)
        ends[kind.replace("-", " ")] = rank_examples(scores[:, 0], 1)
    orders: dict[str, np.ndarray] = {}
    for name, order in ends.items():
        orders |= {f"{name} +": order, f"{name} -": order[::-1]}
    chance = np.concatenate(list(random_scores(run, every, RANDOM_DIRECTIONS, request.seed)), axis=1)
    for i, column in enumerate(chance.T):
        orders[f"{RANDOM_DIRECTION}{i + 1}"] = rank_examples(column, 1)
    return _filled(pool, orders, request)


def _filled(pool: Pool, orders: Mapping[str, np.ndarray], request: SftRequest) -> dict[str, np.ndarray]:
    tokens = round(request.examples * float(pool.lengths.mean()))
    return {name: fill(order, pool.lengths, tokens) for name, order in orders.items()}


def fill(order: np.ndarray, lengths: np.ndarray, tokens: int) -> np.ndarray:
    """The rows of an order that fit into `tokens`, passing over those that are longer than what is left, until
    less than SLACK of it is left."""
    chosen, left = [], tokens
    for row, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        if length <= left:
            chosen.append(row)
            left -= length
            if left < SLACK * tokens:
                break
    return np.array(chosen, dtype=np.int64)


def train_proxy(
    run: Run,
    model: LanguageModel,
    solutions: Solutions,
    request: SftRequest,
    answers: Answers | None = None,
    notes: Sequence[str] = (),
    progress: Progress = silent,
    workspace: Workspace | None = None,
) -> Evidence:
    """Train on every selection and compare the losses on the solutions, and Pass@1 where `answers` say how; its
    texts are kept in the workspace, where one is given.

    Raises BasiscopeError where TRL or PEFT is missing, or the pool is too small.
    """
    check_installed()
    start = time.monotonic()
    pool = pool_of(run)
    chosen = selections(pool, request) | control_selections(run, model, pool, request)
    plan = [(name, s) for name in chosen for s in range(request.seeds)]
    before, effort, untrained = measured(model, solutions, answers)
    tokens = effort.tokens + len(request.models) * int(pool.lengths.sum())
    made: list[Trained] = []
    progress("training", 0, len(plan))
    for name, seed in plan:
        made.append(trained(run, model, solutions, chosen[name], request, answers, name, seed))
        progress("training", len(made), len(plan))
    measures = (LOSS, PASS) if answers else (LOSS,)
    effects, controls = judge(made, before, measures)
    dropped = [f"{count:,} solutions left out: {why}" for why, count in solutions.left_out.items()]
    if answers:
        dropped += [f"Pass@1: {count:,} problems left out: {why}" for why, count in answers.left_out.items()]
        dropped += _counted_apart(sum((one.effort for one in made), effort))
    sizes = [len(rows) for rows in chosen.values()]
    lengths = [int(pool.lengths[rows].sum()) for rows in chosen.values()]
    tokens += sum(one.tokens for one in made)
    return Evidence(
        "sft",
        run.id,
        LOSS.name,
        measures,
        tuple(effects),
        tuple(controls),
        {key: value for key, value in asdict(request).items() if key != "asked"} | request.asked,
        Cost(round(time.monotonic() - start, 3), tokens),
        (
            f"{len(plan):,} trainings on {min(lengths):,} to {max(lengths):,} tokens of {min(sizes):,} to "
            f"{max(sizes):,} examples, {solutions.problems:,} held-out problems; before training the loss is "
            f"{-before[LOSS.name].mean():.3f} nats per token",
            *guess_notes(model, float(-before[LOSS.name].mean())),
            *dropped,
            *([] if "bag of words +" in chosen else ["bag of words: the texts have too few words to choose by"]),
            NOT_APPLIED,
            *notes,
        ),
        {
            "trainings": [{"name": one.name, "seed": one.seed, **_means(one.outcomes)} for one in made],
            "before": _means(before),
            "seed": request.seed,
            "model": run.manifest["model"]["fingerprint"],
            "versions": versions_of(PACKAGES),
        },
        keep_texts(workspace, run, request, answers, untrained, made) if workspace and answers else {},
    )


def keep_texts(
    workspace: Workspace,
    run: Run,
    request: SftRequest,
    answers: Answers,
    untrained: Sequence[Rollout],
    made: Sequence[Trained],
) -> dict[str, Any]:
    """Keep the texts behind Pass@1 as an evaluation with a variant for each end, the trainings of it after one
    another, and the untrained model's texts beside each of them. The evidence's parts that lead there."""
    along = [one for one in made if one.name[0].isdigit()]
    texts = [
        replace(text, rollout=s * answers.r + text.rollout) for s in range(request.seeds) for text in untrained
    ]
    texts += [
        replace(text, variant=one.name, rollout=one.seed * answers.r + text.rollout)
        for one in along
        for text in one.texts
    ]
    variants = {one.name: one.name for one in along}
    asked = {key: value for key, value in asdict(request).items() if key != "asked"} | request.asked
    model = {name: run.manifest["model"][name] for name in ("name", "fingerprint")}
    stored: dict[str, Any] = {
        "run": run.id,
        "model": model,
        "verifier": answers.verifier,
        "verifier_version": VERSION,
        "r": request.seeds * answers.r,
    }
    stored |= {"variants": {UNSTEERED: "not trained"} | variants, "sft": asked}
    with workspace.start_evaluation(stored) as kept:
        kept.mend()
        kept.save_problems(answers.problems)
        there = {text.key for text in kept.rollouts()}
        if fresh := [text for text in texts if text.key not in there]:
            kept.append(fresh)
        kept.save_manifest(
            {
                "format_version": 1,
                "request": stored,
                "problems": dict(request.asked.get("problems", {}), n=len(answers.problems)),
                "left_out": {},
                "status": "complete",
                "created": now(),
            }
        )
    return {"evaluation": kept.id, "variants": variants}


def measured(
    model: LanguageModel, solutions: Solutions, answers: Answers | None
) -> tuple[dict[str, np.ndarray], Effort, tuple[Rollout, ...]]:
    """The outcomes of a model, as in Trained, what measuring them took, and the texts."""
    found, effort = {LOSS.name: -by_problem(losses(model, solutions), solutions)}, Effort(solutions.tokens)
    if not answers:
        return found, effort, ()
    found[PASS.name], more, texts = answers.measure(model)
    return found, effort + more, texts


def _counted_apart(effort: Effort) -> list[str]:
    counts = {
        "reached the token limit": effort.cut,
        "could not be verified in time, and count as not right": effort.unverified,
    }
    return [f"Pass@1: {n:,} of {effort.texts:,} texts {what}" for what, n in counts.items() if n]


def _means(outcomes: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {name: float(values.mean()) for name, values in outcomes.items()}


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
    answers: Answers | None,
    name: str,
    seed: int,
) -> Trained:
    """Train an adapter on the examples at `rows`, measure it, and take it off again."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers.trainer_callback import PrinterCallback
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
            trainer = SFTTrainer(
                adapted, args=arguments, train_dataset=Dataset.from_list(texts), processing_class=tokenizer
            )
            trainer.remove_callback(PrinterCallback)  # it prints to the standard output, which is --json's
            trainer.train()
        adapted.eval()
        outcomes, effort, written = measured(replace(model, module=adapted), solutions, answers)  # type: ignore[arg-type]
    finally:
        adapted.unload()
        model.module.eval().requires_grad_(False)
    tokens = effort.tokens + round(request.epochs * sum(len(text["input_ids"]) for text in texts))
    return Trained(name, seed, outcomes, tokens, effort, written)


def judge(
    made: Sequence[Trained], before: Mapping[str, np.ndarray], measures: Sequence[Measure] = (LOSS,)
) -> tuple[list[Effect], list[Control]]:
    """Effects of the selections along directions: how much better than after random ones with the same seeds.
    Intervals hold the differences between problems, and between selections, one of which has been drawn for each
    direction however often it is trained. A selection counts where it is further off than every random one, and no
    likely draw from the normal distribution that these are of; and beyond what every other control reaches on the
    same side, by more than the 95% interval of their difference.

    made: every selection with every seed
    """
    names, seeds = dict.fromkeys(one.name for one in made), sorted({one.seed for one in made})
    found = {(one.name, one.seed): one.outcomes for one in made}
    effects: list[Effect] = []
    controls: list[Control] = []
    for measure in measures:
        outcomes = np.array([[found[name, seed][measure.name] for seed in seeds] for name in names])
        judged, levels = _judged(tuple(names), outcomes, before[measure.name], measure)
        effects += judged
        controls += levels
    return effects, controls


def _judged(
    names: Sequence[str], outcomes: np.ndarray, before: np.ndarray, measure: Measure
) -> tuple[list[Effect], list[Control]]:
    """From outcomes (selections, seeds, problems)."""
    from scipy.stats import t

    is_random = np.array([re.match(r"random \d", name) is not None for name in names])
    is_along = np.array([name[0].isdigit() for name in names])
    chance = outcomes[is_random]
    gains = (outcomes - chance.mean(axis=0)).mean(axis=1)
    null, along, others = gains[is_random].mean(axis=1), gains[is_along], gains[~is_random & ~is_along]
    values = along.mean(axis=1)
    outlying = p_outlier(values, null)
    adjusted, furthest = false_discovery(outlying), float(np.abs(null).max())
    between, quantile = float(null.var(ddof=1)), float(t.ppf(0.975, len(null) - 1))

    def interval(gain: np.ndarray) -> Interval:
        value, half = float(gain.mean()), quantile * math.sqrt(between * (1 + 1 / len(null)) + _error(gain))
        return Interval(value, value - half, value + half, len(gain))

    def gap(gain: np.ndarray) -> float:
        beyond = [abs(float(gain.mean())) - furthest]
        for other in others:
            apart = np.sign(gain.mean()) * (gain - other)
            beyond.append(float(apart.mean()) - quantile * math.sqrt(2 * between + _error(apart)))
        return min(beyond)

    effects = [
        Effect(int(name[:-1]), name[-1], measure.name, interval(gain), float(p), float(corrected), gap(gain))
        for name, gain, p, corrected in zip(
            (name for name in names if name[0].isdigit()), along, outlying, adjusted, strict=True
        )
    ]
    detail = (
        f"the furthest of {len(null)} random selections of as many tokens; training alone changes it by "
        f"{chance.mean() - before.mean():+.3g}"
    )
    level = Interval(furthest, float(null.min()), float(null.max()), len(null))
    controls = [Control("random selections", measure.name, level, detail)]
    rest = dict(zip((one for one in names if not re.match(r"random \d|\d", one)), others, strict=True))
    drawn = np.array([gain.mean() for name, gain in rest.items() if name.startswith(RANDOM_DIRECTION)])
    if len(drawn):
        level = Interval(float(drawn[np.abs(drawn).argmax()]), float(drawn.min()), float(drawn.max()), len(drawn))
        detail = f"the furthest of {len(drawn)} selections along random directions; {BEYOND}"
        controls.append(Control("random directions", measure.name, level, detail))
    for name, gain in rest.items():
        if not name.startswith(RANDOM_DIRECTION):
            by, end = name.rsplit(" ", 1)
            controls.append(
                Control(name, measure.name, interval(gain), f"chosen: {ENDS[by][end == '-']}; {BEYOND}")
            )
    return effects, controls


def _error(gains: np.ndarray) -> float:
    """The variance of the mean over problems (problems,); not a number for one."""
    return float(gains.var(ddof=1)) / len(gains) if len(gains) > 1 else math.nan
