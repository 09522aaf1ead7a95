"""The report as Markdown, and its plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from core.demo.card import read_share
from core.demo.default import MODEL
from core.demo.report import proxies, tuning
from core.demo.report.factors import BINARY, GROUPED, Carried
from core.demo.report.measures import (
    EXAMPLES,
    PASS_PROBLEMS,
    POOLINGS,
    PROBLEMS,
    ROLLOUTS,
    SCALES,
    SEED,
    K,
    SteeredPass,
    SteeredShare,
)
from core.demo.train import Settings
from core.usefulness.table import all_proxies, conclusion, towards

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from core.demo.report.proxies import Foretold
    from core.demo.report.tuning import Tuned
    from core.evaluation import Interval
    from core.usefulness.evidence import Evidence


@dataclass(frozen=True)
class Trainings:
    """What items 3 and 4 rest on. chosen: rule along useful directions -> these in words; arms: rule -> its
    trainings; rates: one random selection at each rate, of which `rate` was taken; directions: one training along
    each end."""

    chosen: Mapping[str, str]
    rate: float
    rates: Sequence[Tuned]
    arms: Mapping[str, Sequence[Tuned]]
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
        for kind, style in (("recovered", "o-"), ("random", "s--")):
            own = [point for point in points if point.direction == kind]
            values = np.array([getattr(point, what).value for point in own])
            ends = np.array([getattr(point, what).wilson() for point in own]).T
            bars = np.abs(ends - values)
            axes.errorbar([p.strength for p in own], values, bars, fmt=style, capsize=2, label=kind)
        axes.set_title(what.replace("_", " "))
        axes.set_xlabel("strength (sd)")
        axes.set_ylim(-0.02, 1.02)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
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
        f"`make demo-report` wrote this in {seconds / 60:.0f} minutes. The model solves {share} of held-out "
        f"problems at temperature 1. Seed {SEED}; {EXAMPLES:,} examples; k = {K}.",
        "## 1. Which known factors the directions carry",
        "For each factor the direction that tells it best on four fifths of the examples, measured on the last "
        "fifth, five times: AUC for factors of two values (0.5 tells nothing), eta squared for the others (0). In "
        "brackets the 95th percentile of the same over 200 shuffled factors. **Bold**: beyond the shuffles, "
        "corrected for the number of factors (Benjamini-Hochberg, 5%).",
        *(_factor_table(table, name) for name in ("trained", "random")),
        "The default run (mean-response, raw), factor by direction:",
        "![factors by directions](demo-factors.png)",
        _default_table(found),
        "## 2. What steering does",
        f"{PROBLEMS} held-out problems, temperature 1, every strength with the same noise. The random direction "
        "has the norm of the recovered one. Well formed: it ends in an answer and keeps to one style.",
    ]
    for name, points in sweeps.items():
        parts += [f"### {name}", f"![steering {name}](demo-steering-{name}.png)", _sweep_table(points)]
    parts += [
        f"### Pass@1 and Pass@{ROLLOUTS}",
        f"{PASS_PROBLEMS} other problems, {ROLLOUTS} rollouts each at temperature 1, the same noise at every "
        "strength; differences from no steering are paired by problem, their intervals of 95% each, uncorrected.",
        *(_pass_table(name, rows) for name, rows in rollouts.items()),
        *training_parts(results),
    ]
    return "\n\n".join(parts) + "\n"


def training_parts(results: Trainings) -> list[str]:
    """Items 3 and 4."""
    arms = results.arms
    return [
        "## 3. What a selection trains",
        f"From {tuning.POOL:,} solutions each rule chooses {tuning.BUDGET:,}, and all weights of the model are "
        f"trained on them for one epoch, with {len(tuning.SEEDS)} seeds, which order the examples and, where a "
        f"rule leaves something to chance, choose them. The operations {' and '.join(tuning.RARE)} are rare: the "
        "pretraining had almost none of them; in the pool they are half as frequent as each of the others, and "
        "among the problems all are alike. Pass@1: one rollout each of "
        f"{tuning.PROBLEMS} held-out problems, the same for all; 95% intervals by bootstrap over problems and "
        f"seeds. Loss: on right solutions of {tuning.PROBLEMS} other problems, in nats per token.",
        "Useful directions: as the proxies of item 4 recommend, on a development set, "
        f"{results.chosen[tuning.USEFUL]}; by utility, the association of score and `correct` among "
        f"{tuning.JUDGED:,} solutions of the pool, {results.chosen[tuning.RIGHT]}.",
        "The peak rate is the one with the lowest loss after training on right solutions alone, chosen at random "
        "among them, which no rule can know.",
        _rate_table(results),
        "![Pass@1 by rule](demo-selection.png)",
        _tuned_table(arms),
        f"By Pass@1. {_verdict(arms, 'right')}",
        f"By the loss. {_verdict(arms, 'losses')}",
        _why(results),
        "## 4. Whether the proxies foretell it",
        f"Each end of each direction has {tuning.ALONG:,} examples trained on as in item 3, with one seed, and "
        "is judged by the loss, because Pass@1 of one training is known to no better than five points. The "
        f"proxies had {proxies.PROBLEMS} other problems: steering {proxies.ROLLOUTS} rollouts of each at "
        f"{proxies.STRENGTH:g} sd within {proxies.SECONDS:,.0f} s, short LoRA {proxies.EXAMPLES} examples; "
        f"utility the verdicts of all {tuning.POOL:,} solutions. Rank correlation (Spearman) over the directions "
        "of the + end less the - end, with its 95% interval:",
        _foretold_table(results),
        "![proxies against fine-tuning](demo-proxies.png)",
        "The loss against that before training, end by end; the proxies in their own units, * where they beat all "
        "of their controls:",
        _ends_table(results),
        *(f"- {conclusion(one)}" for one in results.evidence),
    ]


def draw_arms(arms: Mapping[str, Sequence[Tuned]], path: Path) -> None:
    """Pass@1 of every rule with its interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes: Axes = figure.subplots()
    found = [tuning.pass_at_1(arm) for arm in arms.values()]
    bars = np.array([[one.value - one.low, one.high - one.value] for one in found]).T
    axes.errorbar([one.value for one in found], range(len(found)), xerr=bars, fmt="o", capsize=3)
    axes.axvline(tuning.pass_at_1(arms["random"]).value, linestyle=":", color="grey")
    axes.set_yticks(range(len(arms)), list(arms))
    axes.invert_yaxis()
    axes.set_xlabel("Pass@1 after training; dotted: random")
    figure.savefig(path, dpi=130)


def _tuned_table(arms: Mapping[str, Sequence[Tuned]]) -> str:
    columns = (
        *("Pass@1", "against random", "Pass@1, rare operations", "loss", "against random"),
        *("right solutions", "rare operations", "mean tokens"),
    )
    lines = ["| rule | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, arm in arms.items():
        gap, less = (tuning.against(arm, arms["random"], by=by) for by in ("right", "losses"))
        cells = [_share(tuning.pass_at_1(arm)), "" if name == "random" else _points(gap)]
        cells += [_share(tuning.pass_at_1(arm, rare=True)), f"{np.mean([one.loss for one in arm]):.4f}"]
        cells.append("" if name == "random" else f"{less.value:+.4f} ({less.low:+.4f} to {less.high:+.4f})")
        for what, form in (("correct", ".0%"), ("rare", ".0%"), ("tokens", ".0f")):
            values = [value for one in arm if (value := getattr(one, what)) is not None]
            cells.append(format(np.mean(values), form) if values else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _share(one: Interval) -> str:
    return f"{one.value:.1%} ({one.low:.1%} to {one.high:.1%})"


def _points(one: Interval) -> str:
    return f"{one.value:+.1%} ({one.low:+.1%} to {one.high:+.1%})"


def _rate_table(results: Trainings) -> str:
    lines = ["| peak rate | loss | Pass@1 |", "|---|---|---|"]
    for one in (results.arms["not tuned"][0], *results.rates):
        rate, taken = f"{one.rate:g}" if one.rate else "not tuned", " (taken)" if one.rate == results.rate else ""
        lines.append(f"| {rate}{taken} | {one.loss:.4f} | {_share(tuning.pass_at_1([one]))} |")
    return "\n".join(lines)


def _why(results: Trainings) -> str:
    """What the rates say about what any rule can gain here."""
    before, best = results.arms["not tuned"][0], min(results.rates, key=lambda one: one.loss)
    if best.loss < before.loss:
        return f"Right solutions alone lower the loss from {before.loss:.4f} to {best.loss:.4f}."
    return (
        "Why no rule helps: at no rate do even right solutions alone bring the loss below that of the model as it "
        f"is, which has seen {Settings().tokens / 1e6:.1f} million tokens of the same world."
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


def _verdict(arms: Mapping[str, Sequence[Tuned]], by: str) -> str:
    """What the intervals of Pass@1 (`right`) or of `losses` allow to say, in a sentence per comparison."""
    pairs = [(name, "random") for name in arms if name not in ("not tuned", "random")]
    pairs += [(name, tuning.HUMAN) for name in (tuning.USEFUL, tuning.RIGHT)]
    pairs += [(name, "not tuned") for name in arms if name != "not tuned"]
    said: dict[str, list[str]] = {}
    for name, other in pairs:
        gap = tuning.against(arms[name], arms[other], by=by)
        more, less = ("Better", "Worse") if by == "right" else ("Worse", "Better")
        told = f"{more} than" if gap.low > 0 else f"{less} than" if gap.high < 0 else "Not to be told from"
        said.setdefault(f"{told} {other}", []).append(name)
    return " ".join(f"{told}: {', '.join(names)}." for told, names in said.items())


def _factor_table(table: pd.DataFrame, model: str) -> str:
    from scipy.stats import false_discovery_control

    own = table[table["model"] == model].copy()
    own["passes"] = own.groupby(["pooling", "scale"])["p"].transform(lambda p: false_discovery_control(p) < 0.05)
    recipes = [(pooling, scale) for pooling in POOLINGS for scale in SCALES]
    title = "Trained model" if model == "trained" else "The same, randomly initialised (control)"
    lines = [f"**{title}**", "", "| factor | " + " | ".join(f"{p}, {s}" for p, s in recipes) + " |"]
    lines.append("|---" * (len(recipes) + 1) + "|")
    for factor in (*BINARY, *GROUPED):
        cells = []
        for pooling, scale in recipes:
            picked = own[(own["pooling"] == pooling) & (own["scale"] == scale) & (own["factor"] == factor)]
            one: Any = next(picked.itertuples())
            value = f"**{one.value:.2f}**" if one.passes else f"{one.value:.2f}"
            cells.append(f"{value} ({one.null:.2f})")
        measure = "AUC" if factor in BINARY else "eta²"
        lines.append(f"| {factor} ({measure}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _default_table(found: Sequence[Carried]) -> str:
    lines = ["| factor | best direction | cross-validated | shuffled, 95% |", "|---|---|---|---|"]
    lines += [f"| {c.factor} | {c.direction} | {c.measure} {c.value:.2f} | {c.null:.2f} |" for c in found]
    return "\n".join(lines)


def _sweep_table(points: Sequence[SteeredShare]) -> str:
    lines = ["| direction | strength (sd) | symbolic | checks | well formed | right |", "|---" * 6 + "|"]
    lines += [
        f"| {p.direction} | {p.strength:+g} | {p.symbolic} | {p.check} | {p.well_formed} | {p.right} |"
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
