"""Utility: how the scores of traces go with their verdicts, controlled for length, problem and chance."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from core.activations import Progress, silent
from core.errors import BasiscopeError
from core.evaluation import Interval
from core.model import LanguageModel
from core.usefulness import PROXIES, SIGNIFICANCE
from core.usefulness import association as assoc
from core.usefulness.association import Estimate
from core.usefulness.controls import (
    MODEL_TRACES,
    bag_of_words,
    check_models,
    draws_for,
    random_model_scores,
    random_scores,
)
from core.usefulness.evidence import (
    BOTH,
    CONSTANT,
    Control,
    Cost,
    Effect,
    Evidence,
    Measure,
    false_discovery,
    level_of_best,
    p_against_best,
)
from core.usefulness.traces import LENGTH, Traces, read_traces
from core.versions import versions_of
from core.workspace import Run

PERMUTATIONS, MOST_PERMUTATIONS = 2_000, 10_000
"""Shuffles of the verdicts: more than the least where there are many directions, up to the most, which take 4 s of
5,276 traces and 60 directions."""
MODEL_DRAWS = 3
"""Models of each random kind: another draw of weights reaches another level."""
PACKAGES = ("numpy", "scipy", "scikit-learn", "torch", "transformers")
MEASURES = (
    Measure("r", "point-biserial correlation", "r"),
    Measure("auc", "area under the ROC curve", "AUC", 0.5),
    Measure("r-controlled", "partial correlation", "r"),
    Measure("auc-controlled", "area under the ROC curve, controlled", "AUC", 0.5),
    Measure("r-within", "correlation within problems", "r"),
    Measure("auc-within", "pairs of one problem in the right order", "AUC", 0.5),
    Measure("r-within-controlled", "partial correlation within problems", "r"),
    Measure("auc-within-controlled", "pairs of one problem in the right order, controlled", "AUC", 0.5),
)


@dataclass(frozen=True)
class UtilityRequest:
    """What to ask. correct, problem: columns, as `read_traces` takes them; models: which of MODELS to run over a
    sample of `model_traces` traces."""

    correct: str | None = None
    control: tuple[str, ...] = (LENGTH,)
    problem: str | None = None
    models: tuple[str, ...] = ()
    model_traces: int = MODEL_TRACES
    seed: int = 0

    def __post_init__(self) -> None:
        check_models(self.models)


def utility(
    run: Run,
    request: UtilityRequest,
    load: Callable[[], LanguageModel] | None = None,
    progress: Progress = silent,
) -> Evidence:
    """Every direction against the verdicts of the run's traces, beside the controls.

    load: gives the run's model, where the request has random models among its controls. Raises BasiscopeError
    where the columns cannot be used, or where no direction has a score that varies.
    """
    start = time.monotonic()
    traces = read_traces(run, request.correct, request.control, request.problem)
    scores = run.scores().iloc[traces.rows, 1:].to_numpy(dtype=np.float64)
    if not np.isfinite(scores).all():
        raise BasiscopeError(f"Run {run.id} has scores that are not numbers; recover it again.")
    constant = scores.std(axis=0) <= 1e-9 * np.abs(scores).max(initial=1e-300)
    if constant.all():
        raise BasiscopeError(
            f"Run {run.id}: every direction has the same score on all traces; nothing to compare."
        )
    found = {name: estimates(name, scores, traces) for name in measures_of(traces)}
    primary = "auc-within-controlled" if traces.is_within else "auc-controlled"
    progress("controls", 0, 4)
    p, best_shuffled = _permuted(primary, scores, traces, request.seed)
    progress("controls", 1, 4)
    draws = np.concatenate(
        [
            values(primary, part.astype(np.float64), traces)
            for part in random_scores(run, traces.rows, draws_for(run.k), request.seed)
        ]
    )
    progress("controls", 2, 4)
    controls = [
        Control(
            "random directions",
            primary,
            _level(level_of_best(np.abs(draws - 0.5), run.k), len(draws)),
            f"95th percentile of the best of {run.k} random directions of the same norm, {len(draws):,} drawn",
        ),
        *best_shuffled,
        *(words := _words(run, traces, primary, request.seed)),
        *_length(run, traces, None if LENGTH in request.control else primary),
    ]
    progress("controls", 3, 4)
    away = np.abs(np.array([estimate.interval.value for estimate in found[primary]]) - 0.5)
    gap = _gap(found[primary], [control for control in controls if control.measure == primary])
    tokens, notes = 0, list[str]()
    if request.models:
        if load is None:
            raise BasiscopeError("Random models as controls need the run's model.")
        sample = traces.of_problems(request.model_traces, request.seed)
        tokens, made, notes = _random_models(run, load(), sample, request, primary)
        controls += made
        if made:
            own = estimates(primary, scores[np.isin(traces.rows, sample.rows)], sample)
            gap = np.fmin(gap, _gap(own, made))
    progress("controls", 4, 4)
    own_p = p if p is not None else np.array([estimate.p for estimate in found[primary]])
    adjusted = np.maximum(false_discovery(own_p), p_against_best(away, np.abs(draws - 0.5), run.k))
    effects = []
    for name, column in found.items():
        for j, estimate in enumerate(column):
            if constant[j]:
                nothing = assoc.none_of(traces.n).interval
                effects.append(Effect(j + 1, BOTH, name, nothing, note=CONSTANT))
            elif name == primary:
                numbers = (float(own_p[j]), float(adjusted[j]), float(gap[j]))
                effects.append(Effect(j + 1, BOTH, name, estimate.interval, *numbers))
            else:
                effects.append(Effect(j + 1, BOTH, name, estimate.interval, estimate.p))
    return Evidence(
        "utility",
        run.id,
        primary,
        tuple(measure for measure in MEASURES if measure.name in found),
        tuple(effects),
        tuple(controls),
        asdict(request),
        Cost(round(time.monotonic() - start, 3), tokens),
        (*_notes(traces), *_doubts(run.k, len(draws), p is not None, bool(words)), *notes),
        {
            "traces": traces.n,
            "right": int(traces.right.sum()),
            "problems": traces.problems,
            "mixed_problems": traces.mixed_problems,
            "permutations": permutations_for(run.k) if p is not None else 0,
            "draws": len(draws),
            "model_draws": MODEL_DRAWS if request.models else 0,
            "seed": request.seed,
            "model": run.manifest["model"]["fingerprint"],
            "data": run.manifest["data"].get("fingerprint"),
            "versions": versions_of(PACKAGES),
        },
    )


def measures_of(traces: Traces) -> list[str]:
    """The names of the measures that the traces allow."""
    return [measure.name for measure in MEASURES if traces.is_within or "within" not in measure.name]


def adjusted_scores(measure: str, scores: np.ndarray, traces: Traces) -> np.ndarray:
    """Scores (n, k) as a measure compares them: less their problem's mean, less what the controls predict."""
    if "within" in measure:
        scores = assoc.within_problem(scores, traces.problem)
    return assoc.residuals(scores, _span(measure, traces))


def _span(measure: str, traces: Traces) -> np.ndarray:
    """(n, r) orthonormal columns of what a measure controls for; within problems the constant is gone."""
    if "within" in measure:
        controls = assoc.within_problem(traces.controls, traces.problem)
        return assoc.orthonormal(controls if measure.endswith("controlled") else controls[:, :0])
    whole = traces.span_controls()
    return assoc.orthonormal(whole if measure.endswith("controlled") else whole[:, :1])


def estimates(measure: str, scores: np.ndarray, traces: Traces) -> list[Estimate]:
    """One estimate for each column of scores (n, k)."""
    if measure.startswith("r"):
        right = traces.right.astype(np.float64)
        if "within" in measure:
            scores, right = (assoc.within_problem(part, traces.problem) for part in (scores, right))
        return assoc.correlations(scores, right, _span(measure, traces), traces.problem)
    area = assoc.areas_within if "within" in measure else assoc.areas
    return area(adjusted_scores(measure, scores, traces), traces.right, traces.problem)


def values(measure: str, scores: np.ndarray, traces: Traces) -> np.ndarray:
    """(k,) areas alone, for many columns of scores (n, k)."""
    made = adjusted_scores(measure, scores, traces)
    if "within" in measure:
        ranks = assoc.average_ranks(made, traces.problem)
        return assoc.area_within_values(ranks, traces.right, traces.problem)
    return assoc.area_under_curve(assoc.average_ranks(made), traces.right)


# --- controls -------------------------------------------------------------------------------------------


def _level(distance: float, n: int) -> Interval:
    return Interval(0.5 + distance, math.nan, math.nan, n)


def _permuted(
    measure: str, scores: np.ndarray, traces: Traces, seed: int
) -> tuple[np.ndarray | None, list[Control]]:
    """(k,) permutation p-values of areas, verdicts shuffled within problems, and what the best direction reaches
    with shuffled verdicts. None across problems where one has several traces: they are not exchangeable."""
    within = "within" in measure
    if not within and traces.problems < traces.n:
        return None, []
    group = traces.problem if within else np.zeros(traces.n, dtype=np.int64)
    ranks = assoc.average_ranks(adjusted_scores(measure, scores, traces), group)
    hits, all_of = np.bincount(group, traces.right), np.bincount(group)
    pairs, least = (hits * (all_of - hits)).sum(), (hits * (hits + 1) / 2).sum()
    own = np.abs((ranks[traces.right].sum(axis=0) - least) / pairs - 0.5)
    times = permutations_for(len(own))
    reached, best = np.ones(len(own)), []
    for shuffles in assoc.shuffled(traces.right, group, times, seed):
        away = np.abs((shuffles.astype(np.float64) @ ranks - least) / pairs - 0.5)
        reached += (away >= own - 1e-12).sum(axis=0)
        best.append(away.max(axis=1))
    level = float(np.quantile(np.concatenate(best), 0.95))
    detail = f"95th percentile of the best of {len(own)} directions over {times:,} shuffles"
    control = Control("shuffled verdicts", measure, _level(level, times), detail)
    return reached / (1 + times), [control]


def permutations_for(k: int) -> int:
    """As many shuffles as let one of k directions be told when it is corrected for them and for all proxies, with
    half of them to spare."""
    return int(np.clip(2 * k * len(PROXIES) / SIGNIFICANCE, PERMUTATIONS, MOST_PERMUTATIONS))


def _words(run: Run, traces: Traces, measure: str, seed: int) -> list[Control]:
    name = "response" if "response" in run.columns() else "text"
    texts = run.examples([name])[name].fillna("").iloc[traces.rows].tolist()
    odds = bag_of_words(texts, traces.right, traces.problem, seed)
    if odds is None:
        return []
    (estimate,) = estimates(measure, odds[:, None], traces)
    detail = "the words alone, cross-validated by problem, controlled as the directions are"
    return [Control("bag of words", measure, _helping(estimate.interval), detail)]


def _length(run: Run, traces: Traces, primary: str | None) -> list[Control]:
    """Length alone, by the measures that do not control for it, the primary one among them where it does not."""
    tokens = run.examples(["n_tokens"])["n_tokens"].to_numpy(dtype=np.float64)[traces.rows, None]
    measures = ["auc", "auc-within"] if traces.is_within else ["auc"]
    measures += [primary] if primary else []
    return [
        Control("length alone", name, _helping(estimates(name, tokens, traces)[0].interval), "number of tokens")
        for name in measures
    ]


def _gap(own: Sequence[Estimate], controls: Sequence[Control]) -> np.ndarray:
    """(k,) how much further from a half each area is than every control. From a control that is one estimate, less
    the 95% interval of the difference, taken as of independent ones: that is wider than of the same traces."""
    away = np.array([abs(one.interval.value - 0.5) for one in own])
    half = np.array([(one.interval.high - one.interval.low) / 2 for one in own])
    gaps = []
    for control in controls:
        doubt = (control.level.high - control.level.low) / 2
        margin = 0.0 if math.isnan(doubt) else np.hypot(half, doubt)
        gaps.append(away - (control.level.value - 0.5) - margin)
    return np.min(gaps, axis=0)


def _helping(area: Interval) -> Interval:
    """An area on the side above a half."""
    return area if area.value >= 0.5 else Interval(1 - area.value, 1 - area.high, 1 - area.low, area.n)


def _random_models(
    run: Run, model: LanguageModel, sample: Traces, request: UtilityRequest, measure: str
) -> tuple[int, list[Control], list[str]]:
    """Tokens run, a control for each kind of random model over a sample of traces, and what to say of them. They
    are held against the run's own directions over the same traces: where these are few, chance reaches further."""
    if ("within" in measure and not sample.mixed_problems) or sample.right.all() or not sample.right.any():
        return 0, [], ["random models: their sample of traces has verdicts of one kind only; take more traces"]
    tokens = MODEL_DRAWS * len(request.models) * int(run.windows().lengths[sample.rows].sum())
    controls, notes = [], []
    for kind in request.models:
        try:
            drawn = [
                random_model_scores(run, model, sample.rows, kind, request.seed + draw)
                for draw in range(MODEL_DRAWS)
            ]
        except BasiscopeError as error:
            notes.append(f"{kind}: {error}")
            continue
        every = [
            [_helping(estimate.interval) for estimate in estimates(measure, scores.astype(np.float64), sample)]
            for scores in drawn
        ]
        detail = (
            f"the best of {len(every[0])} directions of each of {MODEL_DRAWS} models with weights drawn anew, the "
            f"furthest of these; in brackets all of their 95% intervals; over {sample.n:,} traces of "
            f"{sample.problems:,} problems"
        )
        controls.append(Control(kind.replace("-", " "), measure, _furthest(every), detail))
    return tokens, controls, notes


def _furthest(drawn: Sequence[Sequence[Interval]]) -> Interval:
    """The furthest of all areas, on the side above a half, of some draws of a model. Its interval holds those of
    the best of every draw: in doubt are the problems, and the draws."""
    best = [max(areas, key=lambda area: area.value) for areas in drawn]
    low, high = np.fmin.reduce([area.low for area in best]), np.fmax.reduce([area.high for area in best])
    return Interval(max(area.value for area in best), float(low), float(high), best[0].n)


def _doubts(k: int, draws: int, has_shuffles: bool, has_words: bool) -> list[str]:
    """Which controls there are none of, and where the others cannot tell a single direction of k."""
    found = []
    if not has_shuffles:
        found.append(
            "verdicts were not shuffled: several traces of one problem cannot be exchanged with those of others; "
            "the p-values are of the areas' standard errors over problems, by the t-distribution"
        )
    if not has_words:
        found.append("bag of words: too few problems, or no words, to learn from some and judge on others")
    least = {f"{draws:,} random directions": float(p_against_best(np.ones(1), np.zeros(draws), k)[0])}
    if has_shuffles:
        least[f"{permutations_for(k):,} shuffles"] = k / (1 + permutations_for(k))
    name = max(least, key=lambda one: least[one])
    if least[name] * len(PROXIES) >= SIGNIFICANCE:
        found.append(
            f"{k} directions are many for {name}: the adjusted p-value of a single one cannot be below "
            f"{least[name]:.2g}, or {min(1.0, least[name] * len(PROXIES)):.2g} when corrected for all "
            f"{len(PROXIES)} proxies"
        )
    return found


def _notes(traces: Traces) -> Sequence[str]:
    first = (
        f"{traces.n:,} traces of {traces.problems:,} problems, {int(traces.right.sum()):,} right; "
        f"{traces.mixed_problems:,} problems have both right and wrong ones"
    )
    dropped = [f"{count:,} examples left out: {why}" for why, count in traces.left_out.items()]
    few = "too few to compare within problems: what a problem's difficulty adds cannot be told apart"
    repeated = traces.problems < traces.n
    return [first, *dropped, *([few] if repeated and not traces.is_within else [])]
