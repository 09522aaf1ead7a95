"""`python -m core.demo.report --out docs` writes docs/demo.md and its plots. Negative results stay in; everything
is seeded."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import click

from core.demo.default import recover_demo
from core.demo.report.factors import carried
from core.demo.report.measures import pass_at, recovery, steer_factor
from core.demo.report.proxies import foretold, measure_proxies, useful_directions
from core.demo.report.text import Trainings, draw_arms, draw_factors, draw_proxies, draw_sweep, write_report
from core.demo.report.tuning import (
    RIGHT,
    USEFUL,
    Tuned,
    compare_directions,
    compare_larger,
    compare_rates,
    compare_rules,
    largest_harmless,
    recover_pool,
    right_directions,
)
from core.selection.pool import pool_of, show_directions
from core.workspace import DEFAULT_ROOT, Run, Workspace


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("docs"), show_default=True)
@click.option("--workspace", type=click.Path(path_type=Path), default=DEFAULT_ROOT, show_default=True)
def main(out: Path, workspace: Path) -> None:
    """Measure the demo and write demo.md with its plots."""
    start = time.monotonic()
    out.mkdir(exist_ok=True)
    table = recovery()
    click.echo(f"recovery measured after {time.monotonic() - start:.0f} s")
    run = recover_demo(Workspace(workspace))
    found = carried(run.scores().drop(columns="example_id").to_numpy(), run.examples())
    by_name = {one.factor: one for one in found}
    sweeps = {name: steer_factor(run, by_name[name]) for name in ("style", "check")}
    rollouts = {name: pass_at(run, by_name[name]) for name in ("check",)}
    pool_run = recover_pool(Workspace(workspace))
    trainings = train(pool_run, Workspace(workspace))
    draw_arms(trainings.arms, out / "demo-selection.png")
    draw_proxies(trainings, out / "demo-proxies.png")
    draw_factors(found, out / "demo-factors.png")
    for name, points in sweeps.items():
        draw_sweep(name, by_name[name], points, out / f"demo-steering-{name}.png")
    text = write_report(table, found, sweeps, rollouts, trainings, time.monotonic() - start)
    (out / "demo.md").write_text(text, encoding="utf-8")
    click.echo(f"{out / 'demo.md'} written after {time.monotonic() - start:.0f} s")


def train(run: Run, workspace: Workspace) -> Trainings:
    """Items 3 and 4; every training and proxy that is finished is kept in the workspace."""
    evidence = measure_proxies(run, workspace, click.echo)
    useful, reason = useful_directions(evidence, run.k)
    rates = compare_rates(run, workspace, click.echo)
    rate = largest_harmless(rates)
    tuned = compare_rules(run, workspace, rate, useful, click.echo)
    arms = by_arm(tuned)
    larger = by_arm(compare_larger(run, workspace, rate, click.echo))
    directions = compare_directions(run, workspace, rate, click.echo)
    ranked = foretold(evidence, directions, arms["not tuned"][0])
    chosen = {USEFUL: show_directions(useful), RIGHT: show_directions(tuple(right_directions(pool_of(run))))}
    return Trainings(chosen, reason, rate, rates, arms, larger, directions, evidence, ranked)


def by_arm(tuned: Sequence[Tuned]) -> dict[str, list[Tuned]]:
    return {name: [one for one in tuned if one.arm == name] for name in dict.fromkeys(one.arm for one in tuned)}


if __name__ == "__main__":
    main()
