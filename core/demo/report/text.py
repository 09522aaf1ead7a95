"""The report as Markdown, and its plots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from core.demo.card import Share, read_share
from core.demo.default import MODEL
from core.demo.report import proxies, tuning
from core.demo.report.factors import BINARY, FACTORS, UNCHECKED, Carried
from core.demo.report.measures import (
    EXAMPLES,
    PASS_PROBLEMS,
    POOLINGS,
    PROBLEMS,
    RIVALS,
    ROLLOUTS,
    SCALES,
    SEED,
    UNTRAINED,
    K,
    SteeredPass,
    SteeredShare,
)
from core.demo.train import Settings
from core.evaluation.intervals import share_interval
from core.model import choose_dtype
from core.usefulness.table import all_proxies, conclusion, towards

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from core.demo.report.proxies import Foretold
    from core.demo.report.tuning import Gap, Tuned
    from core.evaluation import Interval
    from core.usefulness.evidence import Evidence


@dataclass(frozen=True)
class Trainings:
    """What items 3 and 4 rest on. chosen: rule along useful directions -> these in words, and the reason of those
    that proxies chose; arms: rule -> its trainings, and larger: two of them at tuning.LARGER times the rate;
    rates: the model as it is, then right solutions at each rate, of which `rate` was taken; directions: one
    training along each end."""

    chosen: Mapping[str, str]
    reason: str
    rate: float
    rates: Sequence[Tuned]
    arms: Mapping[str, Sequence[Tuned]]
    larger: Mapping[str, Sequence[Tuned]]
    directions: Sequence[Tuned]
    evidence: Sequence[Evidence]
    foretold: Sequence[Foretold]


def draw_factors(found: Sequence[Carried], path: Path) -> None:
    """Factors by directions of the default run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes: Axes = figure.subplots()
    values = np.array([2 * np.abs(c.by_direction - 0.5) if c.measure == "AUC" else c.by_direction for c in found])
    image = axes.imshow(values, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    axes.set_xticks(range(values.shape[1]), [str(j + 1) for j in range(values.shape[1])])
    axes.set_yticks(range(len(found)), [c.factor for c in found])
    axes.set_xlabel("direction")
    figure.colorbar(image, label="|2 AUC - 1|, or eta squared")
    figure.savefig(path, dpi=130)


def draw_sweep(name: str, factor: Carried, points: Sequence[SteeredShare], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    shown = ("symbolic" if name == "style" else "check", "well_formed", "right")
    for axes, what in zip(figure.subplots(1, 3, sharey=True), shown, strict=True):
        for kind, style in zip(("recovered", *RIVALS), ("o-", "^-", "v-", "s--"), strict=True):
            own = [point for point in points if point.direction == kind and getattr(point, what).n]
            values = np.array([getattr(point, what).value for point in own])
            ends = np.array([getattr(point, what).wilson() for point in own]).T
            bars = np.abs(ends - values)
            axes.errorbar([p.strength for p in own], values, bars, fmt=style, capsize=2, label=kind)
        axes.set_title(what.replace("_", " "))
        axes.set_xlabel("strength (sd)")
        axes.set_ylim(-0.02, 1.02)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.suptitle(f"Steering along direction {factor.direction}, which best tells {name}")
    figure.savefig(path, dpi=130)


def write_report(
    table: pd.DataFrame,
    found: Sequence[Carried],
    sweeps: dict[str, list[SteeredShare]],
    rollouts: dict[str, list[SteeredPass]],
    results: Trainings,
    seconds: float,
) -> str:
    share = read_share((MODEL / "README.md").read_text(encoding="utf-8"))
    parts = [
        "# What the demo shows",
        f"`make demo-report` wrote this; its last call took {seconds / 60:.0f} minutes, and the trainings of "
        f"items 3 and 4, of this call or kept from an earlier one, {_training_minutes(results):.0f} minutes of "
        f"one core. The model solves {share} of held-out problems at temperature 1. Seed {SEED}; {EXAMPLES:,} "
        f"examples; k = {K}. The default run, its steering and the trainings of all weights are in float32, all "
        f"else in {choose_dtype()}.",
        *_findings(table, found, sweeps, results),
        "## 1. Which known factors the directions carry",
        "For each factor the direction that tells it best on four fifths of the examples, measured on the last "
        "fifth, five times: AUC for factors of two values (0.5 tells nothing), eta squared for the others (0). In "
        "brackets the 95th percentile of the same over 200 shuffled factors. **Bold**: beyond the shuffles, "
        "corrected for the number of factors (Benjamini-Hochberg, 5%). Some factors hang together by "
        "construction: `correct` on `check`, `source` on style, check and plan, `length` on nearly all. A "
        f"direction that tells one tells the other; `{UNCHECKED}` is `correct` where nothing is checked.",
        *(_factor_table(table, name) for name in ("trained", "random 1")),
        f"The default recipe (mean-response, raw) beside {UNTRAINED} random initialisations: 95% intervals over "
        "the folds.",
        _control_table(table),
        _above_control(table),
        "The default run, 4,000 examples, factor by direction. Nothing is chosen here, so nothing is held out; "
        "**bold**: beyond the 95th percentile of the best of all directions over 200 shuffles of the factor.",
        "![factors by directions](demo-factors.png)",
        _direction_table(found),
        "The best direction of each, cross-validated, with its 95% interval over the folds, and all directions "
        "together (Fisher's linear discriminant, cross-validated):",
        _default_table(found),
        "## 2. What steering does",
        f"{PROBLEMS} held-out problems, temperature 1, every strength with the same noise. The random direction, "
        "one, has the norm of the recovered one; combined is the combination of all directions that best tells "
        "the factor, mean difference that of the activations in all dimensions, both towards verbal or checking. "
        "Well formed: it ends in an answer and keeps to one style; the share of symbolic solutions is of these.",
    ]
    for name, points in sweeps.items():
        (carries,) = (one for one in found if one.factor == name)
        said = [_ends_of_sweep(name, points), *([_why_not_steered(carries, points)] if name == "check" else [])]
        parts += [
            f"### {name}",
            f"![steering {name}](demo-steering-{name}.png)",
            *said,
            _sweep_table(points),
        ]
    parts += [
        f"### Pass@1 and Pass@{ROLLOUTS}",
        f"{PASS_PROBLEMS} other problems, {ROLLOUTS} rollouts each at temperature 1, the same noise at every "
        "strength; differences from no steering are paired by problem, their intervals of 95% each, uncorrected.",
        *(_pass_table(name, rows) for name, rows in rollouts.items()),
        *training_parts(results),
    ]
    return "\n\n".join(parts) + "\n"


def _findings(
    table: pd.DataFrame,
    found: Sequence[Carried],
    sweeps: Mapping[str, Sequence[SteeredShare]],
    results: Trainings,
) -> list[str]:
    """What came out, a line for each item."""
    above = ", ".join(_above(table)) or "no factor"
    parts = [f"- **Recovery** (item 1). The basis tells {above} better than that of any untrained model does."]
    for name, points in sweeps.items():
        (unsteered,) = (one for one in points if one.strength == 0)
        kept = [one for one in _undamaged("recovered", points) if one.strength]
        (direction,) = (one.direction for one in found if one.factor == name)
        moved = [one for one in kept if _differs(_factor_share(name, one), _factor_share(name, unsteered))]
        told = f"no strength that leaves the texts whole changes the share of {COUNTED[name]}"
        if moved:
            before = _factor_share(name, unsteered)
            best = max(moved, key=lambda one: abs(_factor_share(name, one).value - before.value))
            told = (
                f"{best.strength:+g} sd take the share of {COUNTED[name]} from {before.value:.0%} to "
                f"{_factor_share(name, best).value:.0%}, that of right ones from {unsteered.right.value:.0%} to "
                f"{best.right.value:.0%}"
            )
        parts.append(f"- **Steering** (item 2). Along direction {direction}, which best tells {name}, {told}.")
    useful, random = results.arms[tuning.USEFUL], results.arms["random"]
    right, loss = (tuning.against(useful, random, by=by).interval for by in ("right", "losses"))
    parts.append(
        "- **Selection** (item 3). A thousand solutions along the directions that the proxies put highest, beside "
        f"a random thousand: Pass@1 {_points(right)}, loss {loss.value:+.4f} ({loss.low:+.4f} to "
        f"{loss.high:+.4f}) nats per token. Which differences hold when all are corrected for is said there."
    )
    best_proxy = max(results.foretold, key=lambda one: one.agreement.value)
    value = best_proxy.agreement
    parts.append(
        f"- **Proxies** (item 4). Of the proxies {best_proxy.proxy} foretells best what full fine-tuning gives: "
        f"rank correlation {value.value:+.2f} ({value.low:+.2f} to {value.high:+.2f})."
    )
    return ["What came out, with 95% intervals, uncorrected here:", "\n".join(parts)]


def training_parts(results: Trainings) -> list[str]:
    """Items 3 and 4."""
    arms = results.arms
    return [
        "## 3. What a selection trains",
        f"From {tuning.POOL:,} solutions each rule chooses {tuning.BUDGET:,}, and all weights of the model are "
        f"trained on them for one epoch, with {len(tuning.SEEDS)} seeds, which order the examples and, where a "
        "rule leaves something to chance, choose them; the budget is in examples, so rules that choose long ones "
        f"take more steps. The operations {' and '.join(tuning.RARE)} are rare: {_rarity()}, "
        "and the problems all alike. Pass@1: one rollout each "
        f"of {tuning.PROBLEMS} held-out problems, the same for all. Loss: on right solutions of {tuning.PROBLEMS} "
        "other problems, in nats per token. 95% intervals by Student's t over problems and seeds, each for "
        "itself.",
        "The directions here and in item 4 are those of these solutions, another basis than the one above and in "
        "the app: the same number need not mean the same.",
        f"Useful directions: {results.chosen[tuning.USEFUL]} ({results.reason}); by utility, the association of "
        f"score and `correct` among {tuning.JUDGED:,} solutions of the pool, {results.chosen[tuning.RIGHT]}.",
        "The peak rate is the largest that does no harm: the loss on right solutions of other, development "
        "problems is no higher than before, after training on right solutions alone, drawn at random, which no "
        "rule can know.",
        _rate_table(results),
        "![Pass@1 by rule](demo-selection.png)",
        _tuned_table(arms),
        f"By Pass@1. {_verdict(arms, 'right')}",
        f"By the loss. {_verdict(arms, 'losses')}",
        f"By the responses that check. {_verdict(arms, 'checked')}",
        f"Each line is corrected for its {len(_pairs(arms))} comparisons (Benjamini-Hochberg, 5%).",
        *_why(arms),
        _at_larger_rate(results),
        "## 4. Whether the proxies foretell it",
        f"Each end of each direction has {tuning.ALONG:,} examples trained on as in item 3, with one seed, and "
        "is judged by the loss, because Pass@1 of one training is known to no better than five points. The "
        f"proxies had {proxies.PROBLEMS} other problems to draw on: steering {proxies.ROLLOUTS} rollouts of each "
        f"that it came to, at {proxies.STRENGTH:g} sd within {proxies.SECONDS:,.0f} s (below), short LoRA "
        f"{proxies.EXAMPLES} examples; utility the verdicts of all {tuning.POOL:,} solutions. Rank correlation "
        "(Spearman) over the directions of the + end less the - end, with its 95% interval; seconds with two "
        "processes at work:",
        _foretold_table(results),
        "![proxies against fine-tuning](demo-proxies.png)",
        "The loss against that before training, end by end; the proxies in their own units, * where they beat all "
        "of their controls:",
        _ends_table(results),
        *(f"- {conclusion(one)} ({one.proxy}: {'; '.join(one.notes)}.)" for one in results.evidence),
    ]


def draw_arms(arms: Mapping[str, Sequence[Tuned]], path: Path) -> None:
    """Pass@1 of every rule with its interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes: Axes = figure.subplots()
    found = [tuning.average(arm) for arm in arms.values()]
    bars = np.array([[one.value - one.low, one.high - one.value] for one in found]).T
    axes.errorbar([one.value for one in found], range(len(found)), xerr=bars, fmt="o", capsize=3)
    axes.axvline(tuning.average(arms["random"]).value, linestyle=":", color="grey")
    axes.set_yticks(range(len(arms)), list(arms))
    axes.invert_yaxis()
    axes.set_xlabel("Pass@1 after training; dotted: random")
    figure.savefig(path, dpi=130)


def _tuned_table(arms: Mapping[str, Sequence[Tuned]]) -> str:
    columns = (
        *("Pass@1", "against random", "Pass@1, rare operations", "responses that check", "loss", "against random"),
        *("trained on: right", "checked", "rare operations", "mean tokens"),
    )
    lines = ["| rule | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, arm in arms.items():
        gap, less = (tuning.against(arm, arms["random"], by=by).interval for by in ("right", "losses"))
        cells = [_share(tuning.average(arm)), "" if name == "random" else _points(gap)]
        cells += [_share(tuning.average(arm, rare=True)), _share(tuning.average(arm, by="checked"))]
        cells.append(f"{np.mean([one.loss for one in arm]):.4f}")
        cells.append("" if name == "random" else f"{less.value:+.4f} ({less.low:+.4f} to {less.high:+.4f})")
        for what, form in (("correct", ".0%"), ("check", ".0%"), ("rare", ".0%"), ("tokens", ".0f")):
            values = [value for one in arm if (value := getattr(one, what)) is not None]
            cells.append(format(np.mean(values), form) if values else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _share(one: Interval) -> str:
    return f"{one.value:.1%} ({one.low:.1%} to {one.high:.1%})"


def _points(one: Interval) -> str:
    return f"{one.value:+.1%} ({one.low:+.1%} to {one.high:+.1%})"


def _rate_table(results: Trainings) -> str:
    lines = ["| peak rate | loss on development problems |", "|---|---|"]
    for one in results.rates:
        rate, taken = f"{one.rate:g}" if one.rate else "not tuned", " (taken)" if one.rate == results.rate else ""
        lines.append(f"| {rate}{taken} | {one.loss:.4f} |")
    return "\n".join(lines)


def _rarity() -> str:
    learned, offered = min(dict(Settings().mix).values()), min(tuning.MIX.values())
    return f"for each of another one the pretraining had {learned:g}, the pool has {offered:g}"


def _training_minutes(results: Trainings) -> float:
    every = [*results.rates, *results.directions]
    every += [one for arms in (results.arms, results.larger) for arm in arms.values() for one in arm]
    return (sum(one.seconds for one in every) + sum(one.cost.seconds for one in results.evidence)) / 60


def _why(arms: Mapping[str, Sequence[Tuned]]) -> list[str]:
    """What any rule can gain here: what the truth is worth, and what the habit is."""
    ceiling = tuning.against(arms[tuning.TRUTH], arms["random"]).interval
    half = max(
        (one.high - one.low) / 2 for one in (tuning.against(arms[r], arms["random"]).interval for r in OURS)
    )
    (before,) = arms["not tuned"]
    right, checked = np.array(before.right), np.array(before.checked)
    alone, rest = share_interval(right[checked]), share_interval(right[~checked])
    return [
        f"What no rule can know, to take right solutions alone, is worth {_points(ceiling)} over random. With "
        f"{tuning.PROBLEMS} problems and {len(tuning.SEEDS)} seeds a difference of less than about {half:.0%} "
        "cannot be told from none.",
        f"The model as it is solves {_share(alone)} of the problems whose steps it checks and {_share(rest)} of "
        "the others; to check all would be worth at most about "
        f"{alone.value - right.mean():+.1%}, if checking were the cause.",
    ]


def _at_larger_rate(results: Trainings) -> str:
    """What is gained where the training is let do harm, so that a habit is learned faster."""
    ours, chance = results.larger[tuning.RIGHT], results.larger["random"]
    before = results.arms["not tuned"]
    said = [
        f"{name} gives Pass@1 {_share(tuning.average(arm))}, loss {np.mean([one.loss for one in arm]):.4f}, and "
        f"{_share(tuning.average(arm, by='checked'))} of the responses check"
        for name, arm in results.larger.items()
    ]
    return (
        f"At {tuning.LARGER} times that rate: {'; '.join(said)}. Between the two that is "
        f"{_points(tuning.against(ours, chance).interval)} of Pass@1 and "
        f"{_points(tuning.against(ours, chance, by='checked').interval)} of checking; between {tuning.RIGHT} and "
        f"the model as it is {_points(tuning.against(ours, before).interval)} of Pass@1. Intervals of 95% each, "
        "uncorrected."
    )


def _foretold_table(results: Trainings) -> str:
    lines = ["| proxy | rank correlation | seconds |", "|---|---|---|"]
    for one in results.foretold:
        r = one.agreement
        lines.append(f"| {one.proxy} | {r.value:+.2f} ({r.low:+.2f} to {r.high:+.2f}) | {one.seconds:,.0f} |")
    return "\n".join(lines)


def _ends_table(results: Trainings) -> str:
    shown = all_proxies(K, results.evidence)
    loss = proxies.gains(results.directions, results.arms["not tuned"][0])
    lines = ["| end | loss lower by, 1e-4 | " + " | ".join(shown.columns[1:]) + " |"]
    lines.append("|---" * (len(shown.columns) + 1) + "|")
    for end, *cells in shown.itertuples(index=False):
        gained = f"{1e4 * loss[end].value:+.1f}" if end in loss else ""
        lines.append(f"| {end} | {gained} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw_proxies(results: Trainings, path: Path) -> None:
    """Every proxy against how much lower the loss is after full fine-tuning, a point for each end."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.2), layout="constrained")
    loss = proxies.gains(results.directions, results.arms["not tuned"][0])
    for axes, one in zip(figure.subplots(1, len(results.evidence), sharey=True), results.evidence, strict=True):
        ends = towards(one)
        shared = [end for end in loss if end in ends]
        axes.scatter([ends[end].value for end in shared], [loss[end].value for end in shared], s=14)
        for end in shared:
            axes.annotate(end, (ends[end].value, loss[end].value), fontsize=7)
        axes.axhline(0, linewidth=0.5, color="grey")
        axes.axvline(0, linewidth=0.5, color="grey")
        axes.set_title(one.proxy)
        axes.set_xlabel(one.measure(one.primary).unit, fontsize=8)
    figure.supylabel("loss lower than before by", fontsize=9)
    figure.savefig(path, dpi=130)


OURS = (tuning.USEFUL, tuning.RIGHT)
VERDICTS = {"right": ("Better", "Worse"), "losses": ("Worse", "Better"), "checked": ("More often", "Less often")}
"""What a larger and a smaller mean are called."""


def _pairs(arms: Mapping[str, Sequence[Tuned]]) -> list[tuple[str, str]]:
    pairs = [(name, "random") for name in arms if name not in ("not tuned", "random")]
    pairs += [(name, tuning.HUMAN) for name in OURS]
    return pairs + [(name, "not tuned") for name in arms if name != "not tuned"]


def _verdict(arms: Mapping[str, Sequence[Tuned]], by: str) -> str:
    """What Pass@1 (`right`), the `losses` or the share that checks (`checked`) allow to say, corrected for all
    pairs, a sentence per comparison."""
    from scipy.stats import false_discovery_control

    pairs = _pairs(arms)
    gaps: list[Gap] = [tuning.against(arms[name], arms[other], by=by) for name, other in pairs]
    more, less = VERDICTS[by]
    said: dict[str, list[str]] = {}
    for (name, other), gap, p in zip(pairs, gaps, false_discovery_control([gap.p for gap in gaps]), strict=True):
        told = f"{more if gap.interval.value > 0 else less} than" if p < 0.05 else "Not to be told from"
        said.setdefault(f"{told} {other}", []).append(name)
    return " ".join(f"{told}: {', '.join(names)}." for told, names in said.items())


def _factor_table(table: pd.DataFrame, model: str) -> str:
    from scipy.stats import false_discovery_control

    own = table[table["model"] == model].copy()
    own["passes"] = own.groupby(["pooling", "scale"])["p"].transform(lambda p: false_discovery_control(p) < 0.05)
    recipes = [(pooling, scale) for pooling in POOLINGS for scale in SCALES]
    title = "Trained model" if model == "trained" else "The same, randomly initialised (control, the first)"
    lines = [f"**{title}**", "", "| factor | " + " | ".join(f"{p}, {s}" for p, s in recipes) + " |"]
    lines.append("|---" * (len(recipes) + 1) + "|")
    for factor in FACTORS:
        cells = []
        for pooling, scale in recipes:
            picked = own[(own["pooling"] == pooling) & (own["scale"] == scale) & (own["factor"] == factor)]
            one: Any = next(picked.itertuples())
            value = f"**{one.value:.2f}**" if one.passes else f"{one.value:.2f}"
            cells.append(f"{value} ({one.null:.2f})")
        lines.append(f"| {factor} ({_measure(factor)}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _measure(factor: str) -> str:
    return "AUC" if factor in (*BINARY, UNCHECKED) else "eta²"


def _beside_control(table: pd.DataFrame) -> Iterator[tuple[str, Any, list[float]]]:
    """Factor, the trained model's row and the untrained models' values, by the default recipe."""
    default = table[(table["pooling"] == POOLINGS[0]) & (table["scale"] == SCALES[0])]
    for factor in FACTORS:
        own = default[default["factor"] == factor]
        trained: Any = next(own[own["model"] == "trained"].itertuples())
        yield factor, trained, sorted(own[own["model"] != "trained"]["value"])


def _control_table(table: pd.DataFrame) -> str:
    lines = ["| factor | trained | untrained, least to greatest |", "|---|---|---|"]
    for factor, trained, control in _beside_control(table):
        values = " ".join(f"{value:.2f}" for value in control)
        interval = f"{trained.value:.2f} ({trained.low:.2f} to {trained.high:.2f})"
        lines.append(f"| {factor} ({_measure(factor)}) | {interval} | {values} |")
    return "\n".join(lines)


def _above(table: pd.DataFrame) -> list[str]:
    return [factor for factor, trained, control in _beside_control(table) if trained.low > max(control)]


def _above_control(table: pd.DataFrame) -> str:
    """Which factors the training brought into the basis."""
    above = _above(table)
    rest = [factor for factor in FACTORS if factor not in above]
    return (
        f"Above every untrained model, with its whole interval: {', '.join(above) or 'none'}. Not so: "
        f"{', '.join(rest) or 'none'}; these a random network's basis tells as well, or nearly, from the words "
        "alone."
    )


def _direction_table(found: Sequence[Carried]) -> str:
    """Every factor by every direction: AUC, or eta squared."""
    k = len(found[0].by_direction)
    lines = ["| factor | " + " | ".join(str(j + 1) for j in range(k)) + " |", "|---" * (k + 1) + "|"]
    for one in found:
        marked = zip(one.by_direction, one.beyond, strict=True)
        cells = " | ".join(f"**{value:.2f}**" if beyond else f"{value:.2f}" for value, beyond in marked)
        lines.append(f"| {one.factor} ({_measure(one.factor)}) | {cells} |")
    return "\n".join(lines)


def _default_table(found: Sequence[Carried]) -> str:
    lines = ["| factor | best direction | cross-validated | shuffled, 95% | together |", "|---" * 5 + "|"]
    for c in found:
        together = "" if c.together is None else f"{c.together:.3f}"
        value = f"{c.measure} {c.value:.2f} ({c.low:.2f} to {c.high:.2f})"
        lines.append(f"| {c.factor} | {c.direction} | {value} | {c.null:.2f} | {together} |")
    return "\n".join(lines)


UNDAMAGED = 0.8
"""The share of well-formed responses at which a strength still counts as steering."""


COUNTED = {"style": "symbolic solutions", "check": "solutions with checks"}


def _factor_share(name: str, point: SteeredShare) -> Share:
    return point.symbolic if name == "style" else point.check


def _undamaged(kind: str, points: Sequence[SteeredShare]) -> list[SteeredShare]:
    return [one for one in points if one.direction == kind and one.well_formed.value >= UNDAMAGED]


def _differs(one: Share, other: Share) -> bool:
    from scipy.stats import fisher_exact

    counts = [[share.hits, share.n - share.hits] for share in (one, other)]
    return bool(fisher_exact(counts).pvalue < 0.05)


def _ends_of_sweep(name: str, points: Sequence[SteeredShare]) -> str:
    """What the outermost strengths that leave UNDAMAGED of the responses well formed do to the factor."""
    (unsteered,) = (_factor_share(name, one) for one in points if one.strength == 0)
    lines = [
        f"At the outermost strengths that leave {UNDAMAGED:.0%} of the responses well formed, the share of "
        f"{COUNTED[name]}, without steering {unsteered}; * differs from that (Fisher's exact test, 5%, "
        "uncorrected):",
        "",
        "| direction | lowest | highest |",
        "|---|---|---|",
    ]
    for kind in ("recovered", *RIVALS):
        kept = sorted((one for one in _undamaged(kind, points) if one.strength), key=lambda one: one.strength)
        shown = [f"{_marked(_factor_share(name, one), unsteered)} at {one.strength:+g} sd" for one in kept]
        lines.append(f"| {kind} | {shown[0]} | {shown[-1]} |" if shown else f"| {kind} | none is | none is |")
    return "\n".join(lines)


def _marked(one: Share, unsteered: Share) -> str:
    return f"{one}{' *' if _differs(one, unsteered) else ''}"


def _why_not_steered(carries: Carried, points: Sequence[SteeredShare]) -> str:
    """Whether any direction moves the habit, beside how well they tell it."""
    (unsteered,) = (one.check for one in points if one.strength == 0)
    kinds = [kind for kind in ("recovered", *RIVALS) if kind != "random"]
    moved = [kind for kind in kinds if any(_differs(one.check, unsteered) for one in _undamaged(kind, points))]
    if moved:
        return f"The habit is moved along: {', '.join(moved)}."
    return (
        f"So what tells the habit in a written solution (AUC {carries.value:.2f} by one direction, "
        f"{carries.together:.3f} by all together) does not bring it about at these strengths: not the direction, "
        "not the best combination of all of them, not the mean difference in all dimensions."
    )


def _sweep_table(points: Sequence[SteeredShare]) -> str:
    lines = ["| direction | strength (sd) | symbolic | checks | well formed | right |", "|---" * 6 + "|"]
    lines += [
        f"| {p.direction} | {p.strength:+g} | {p.symbolic if p.symbolic.n else 'none is well formed'} | {p.check} "
        f"| {p.well_formed} | {p.right} |"
        for p in points
    ]
    return "\n".join(lines)


def _pass_table(name: str, rows: Sequence[SteeredPass]) -> str:
    columns = [f"{what}Pass@{k}" for k in (1, ROLLOUTS) for what in ("", "difference of ")]
    lines = [f"| along {name} | strength (sd) | " + " | ".join(columns) + " |", "|---" * 6 + "|"]
    for row in rows:
        cells = [row.direction, f"{row.strength:+g}"]
        for k, found in row.pass_at.items():
            cells += [_share(found), _points(row.gaps[k].difference) if k in row.gaps else ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
