"""`python -m bench.worked_example` writes docs/selection.md, its plot and its picture of the page, all figures
taken by the present code. Runs that are finished are kept in the workspace."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from textwrap import fill
from typing import Any

import click
import numpy as np

from bench.coverage import BUDGETS, LABEL_BUDGETS, RULES, SHARE, Covered, cover, draw, spread
from bench.measure import machine
from core.examples import Columns, DataSource
from core.provenance import Origins, ledger
from core.recovery import Request, recover
from core.selection.choose import choose
from core.selection.measures import length_shift
from core.selection.plots import write_plot
from core.selection.pool import Constraints, Pool, Rule, pool_of
from core.selection.screening import Screening
from core.selection.step import screen_run, vectors_of
from core.workspace import DEFAULT_ROOT, Run, Workspace

TEXT = Path(__file__).with_suffix(".md")
PLOT, PICTURE = "selection_covering.svg", "select.png"
BUDGET, SUM = 200, 1_000
DRAWINGS = {"draw", "label", "asy"}
OWNERS_SHOWN, WIDTH = 5, 120


@dataclass(frozen=True)
class Sources:
    """The runs that the document is about; limit: examples of each, all where None."""

    data: Path
    space: Workspace
    limit: int | None = None

    def run(self, path: Path, prompt: str, response: str, with_map: bool = False) -> Run:
        source = DataSource(str(path), limit=self.limit)
        columns = Columns(prompt=prompt, response=response)
        model = str(self.data / "models" / "stories260K")
        started = time.monotonic()
        run = recover(Request(model, source, columns, device="cpu", with_map=with_map), self.space)
        click.echo(f"{path.name}: run {run.id}, {time.monotonic() - started:.0f} s")
        return run

    def math(self, with_map: bool) -> Run:
        folder = self.space.root / "worked_example" / "math"
        folder.mkdir(parents=True, exist_ok=True)
        for level in (1, 3, 5):
            shutil.copy(self.data / "math" / f"math_train_level{level}.json", folder)
        return self.run(folder, "problem", "solution", with_map)

    def gsm8k(self) -> Run:
        """With the skill of each problem, which is published apart."""
        skills = json.loads((self.data / "gsm8k" / "train_skills.json").read_text())["question2skill"]
        rows = [json.loads(line) for line in (self.data / "gsm8k" / "train.jsonl").read_text().splitlines()]
        path = self.space.root / "worked_example" / "gsm8k.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        told = [row | {"skill": skills.get(row["question"], [None])[0]} for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in told))
        return self.run(path, "question", "answer")

    def t0(self) -> Run:
        return self.run(self.data / "sft" / "t0_by_source", "prompt", "completion")

    def college(self) -> Run:
        return self.run(self.data / "math" / "college_math.jsonl", "question", "answer")


@click.command()
@click.option("--data", type=click.Path(exists=True, path_type=Path), default=Path("../shared/data"))
@click.option("--out", type=click.Path(path_type=Path), default=Path("docs"), show_default=True)
@click.option("--workspace", type=click.Path(path_type=Path), default=DEFAULT_ROOT, show_default=True)
@click.option("--parts", default=20, show_default=True, help="Random parts of each run.")
@click.option("--limit", type=int, help="Examples of each run: whether it works, not what it finds.")
@click.option("--picture/--no-picture", default=True, help="Of the page, by Chromium where there is one.")
def main(data: Path, out: Path, workspace: Path, parts: int, limit: int | None, picture: bool) -> None:
    """Measure the runs and write selection.md with its plot and picture."""
    start = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    space = Workspace(workspace)
    sources = Sources(data.resolve(), space, limit)
    math = sources.math(picture)
    pools = {"MATH": pool_of(math)}
    covered = {"MATH": measured("MATH", labelled(pools["MATH"]), vectors_of(math, space), parts)}
    for name, run in (("GSM8K", sources.gsm8k()), ("T0", sources.t0())):
        pools[name] = pool_of(run)
        covered[name] = measured(name, pools[name], vectors_of(run, space), parts)
    write_plot(out / PLOT, lambda axes: draw(axes, covered["MATH"]), 2)
    screening = screen_run(math, space, (str(sources.data / "math" / "math500.jsonl"),))
    if picture:
        photograph(math, space, out / PICTURE)
    facts = {
        "parts": f"{parts} random parts of {SHARE:.0%}",
        "sizes": ", ".join(f"{name} {pool.n:,}" for name, pool in pools.items()),
        "rules": rules_table(covered),
        "verdict": verdict(covered["MATH"]),
        "knees": "; ".join(f"{name} {spread(one.knees, '{:.0f}')}" for name, one in covered.items()),
        "labels": labels_table(covered),
        **length_facts(pools["MATH"]),
        **overlap_facts(screening, pools["MATH"]),
        **ledger_facts(pool_of(sources.college())),
        "machine": machine(),
        "minutes": f"{(time.monotonic() - start) / 60:.0f}",
    }
    (out / "selection.md").write_text(wrapped(Template(TEXT.read_text("utf-8")).substitute(facts)), "utf-8")
    click.echo(f"{out / 'selection.md'} written after {time.monotonic() - start:.0f} s")


def labelled(pool: Pool) -> Pool:
    """With subject and level as one label, too."""
    both = pool.facts["subject"] + ", " + pool.facts["level"]
    return Pool(pool.run, pool.example_id, pool.scores, pool.facts.assign(**{"subject and level": both}))


def measured(name: str, pool: Pool, vectors: np.ndarray, parts: int) -> Covered:
    start = time.monotonic()
    found = cover(pool, vectors, parts)
    click.echo(f"{name}: {len(RULES)} rules on {parts} parts, {time.monotonic() - start:.0f} s")
    return found


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def rules_table(covered: Mapping[str, Covered]) -> str:
    """All budgets on MATH, the middle one on the others."""
    rows = []
    for name, one in covered.items():
        for budget in BUDGETS if name == "MATH" else BUDGETS[1:2]:
            for rule in RULES:
                ends = one.radius_and_mean(rule, budget)
                out = spread(one.percentile(rule, budget), "{:.0%}")
                rows.append([name, f"{budget}", rule, spread(ends[:, 0]), spread(ends[:, 1]), out])
    return table(["", "budget", "rule", "radius", "mean", "percentile"], rows)


def verdict(one: Covered) -> str:
    """Which rule's medians are smallest, at how many of the budgets, and how coverage stands to chance."""

    def middle(rule: str, budget: int, measure: int) -> float:
        return float(np.median(one.radius_and_mean(rule, budget)[:, measure]))

    def smallest(measure: int) -> str:
        winners = [min(RULES, key=lambda rule: middle(rule, budget, measure)) for budget in BUDGETS]
        return ", ".join(f"{name} at {winners.count(name)}" for name in dict.fromkeys(winners))

    farther = sum(middle("coverage", budget, 1) > middle("random", budget, 1) for budget in BUDGETS)
    out = {rule: spread(one.percentile(rule, BUDGETS[0]), "{:.0%}") for rule in ("coverage", "random")}
    return (
        f"On MATH, of {len(BUDGETS)} budgets, the smallest radius: {smallest(0)}; the smallest mean distance: "
        f"{smallest(1)}. The mean distance of coverage is larger than that of random selections at {farther}; its "
        f"first {BUDGETS[0]} lie at the percentile {out['coverage']}, random ones at {out['random']}."
    )


def wrapped(text: str) -> str:
    """The paragraphs in lines of WIDTH, all else as it is."""
    blocks = text.split("\n\n")
    plain = [not block.startswith(("|", "#", "!", "```")) for block in blocks]
    options: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
    filled = (
        fill(block, WIDTH, **options) if is_plain else block for block, is_plain in zip(blocks, plain, strict=True)
    )
    return "\n\n".join(filled) + "\n"


def labels_table(covered: Mapping[str, Covered]) -> str:
    columns = {
        "MATH": ("subject", "level", "subject and level"),
        "GSM8K": ("skill",),
        "T0": ("source_file",),
    }
    rows = []
    for name, one in covered.items():
        for column in columns[name]:
            there = max(part.facts[column].nunique() for part in one.parts)
            for budget in LABEL_BUDGETS:
                found = [spread(one.labels(rule, column, budget), "{:.3g}") for rule in RULES]
                rows.append([f"{name}, {there} values of {column}", f"{budget}", *found])
    return table(["", "budget", *RULES], rows)


def length_facts(pool: Pool) -> dict[str, str]:
    facts = {"longest": f"{pool.lengths.max():,}"}
    for name, strata in (("free", False), ("strata", True)):
        wanted = Constraints(budget=min(BUDGET, pool.n // 4), within_length_strata=strata)
        found = length_shift(pool, choose(pool, Rule("along", (1, -3)), wanted, lambda: pool.whitened).rows)
        facts |= {f"{name}_median": f"{found.median:.0f}", f"{name}_longer": f"{found.longer:.2f}"}
        facts["pool_median"] = f"{found.pool_median:.0f}"
    return facts


def ledger_facts(pool: Pool) -> dict[str, str]:
    wanted = Constraints(budget=min(BUDGET, pool.n // 4))
    rows = choose(pool, Rule("coverage"), wanted, lambda: pool.whitened).rows
    owners = ledger(pool, rows, Origins("data_source", "license", total=SUM, use="commercial"))
    shown = [
        [
            str(row["source"]).removeprefix("college_math.").replace("_", " "),
            f"{row['examples']}",
            f"{row['shapley share']:.1%}",
            f"{row['leave one out']:.4f}",
            f"{row['payment']:.2f}",
            str(row["problem"]),
        ]
        for _, row in owners.head(OWNERS_SHOWN).iterrows()
    ]
    header = ["source", "examples", "Shapley share", "leave one out", f"of {SUM:,}", "problem"]
    return {
        "owners": table(header, shown),
        "college": f"{pool.n:,}",
        "books": f"{pool.facts['data_source'].nunique()}",
    }


def overlap_facts(found: Screening, pool: Pool) -> dict[str, str]:
    shared = [set(overlap.words.split()) for overlap in found.overlaps]
    return {
        "near": f"{len(found.duplicates('near')):,}",
        "flagged": f"{len(found.overlaps):,}",
        "math": f"{pool.n:,}",
        "half": f"{sum(overlap.share > 0.5 for overlap in found.overlaps):,}",
        "drawn": f"{sum(bool(words & DRAWINGS) for words in shared):,}",
    }


def photograph(run: Run, space: Workspace, path: Path) -> None:
    """The page Select on a run, as Chromium shows it."""
    from playwright.sync_api import sync_playwright

    from tests.browser import driver

    with sync_playwright() as playwright:
        chromium = driver.chromium_path(playwright)
        if chromium is None:
            click.echo("no Chromium here: the picture stays as it is")
            return
        browser = driver.launch(playwright, chromium)
        with driver.serve(space.root) as address:
            page = browser.new_page(viewport={"width": 1400, "height": 1000})
            driver.open_page(page, f"{address}/select?run={run.id}")
            page.locator(".st-key-curve_mean canvas").first.wait_for(timeout=120_000)
            driver.settle(page, 2_000)
            page.screenshot(path=path)
        browser.close()


if __name__ == "__main__":
    main()
