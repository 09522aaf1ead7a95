"""`python -m core.demo.report --out docs` writes docs/demo.md and its plots. Negative results stay in; everything
is seeded."""

from __future__ import annotations

import time
from pathlib import Path

import click

from core.demo.default import MODEL, recover_demo
from core.demo.report.factors import carried
from core.demo.report.measures import pass_at, recovery, steer_factor
from core.demo.report.text import draw_arms, draw_factors, draw_sweep, write_report
from core.demo.report.tuning import compare_rules, recover_pool, useful_directions
from core.model import load_model
from core.selection.pool import pool_of, show_directions
from core.workspace import DEFAULT_ROOT, Workspace


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
    model = load_model(str(MODEL), device="cpu")
    found = carried(run.scores().drop(columns="example_id").to_numpy(), run.examples())
    by_name = {one.factor: one for one in found}
    sweeps = {name: steer_factor(run, model, by_name[name]) for name in ("style", "check")}
    rollouts = {name: pass_at(run, model, by_name[name]) for name in ("check",)}
    pool_run = recover_pool(Workspace(workspace))
    tuned = compare_rules(pool_run, Workspace(workspace), click.echo)
    arms = {name: [one for one in tuned if one.arm == name] for name in dict.fromkeys(one.arm for one in tuned)}
    useful = show_directions(useful_directions(pool_of(pool_run)))
    draw_arms(arms, out / "demo-selection.png")
    draw_factors(found, out / "demo-factors.png")
    for name, points in sweeps.items():
        draw_sweep(name, by_name[name], points, out / f"demo-steering-{name}.png")
    text = write_report(table, found, sweeps, rollouts, arms, useful, time.monotonic() - start)
    (out / "demo.md").write_text(text, encoding="utf-8")
    click.echo(f"{out / 'demo.md'} written after {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
