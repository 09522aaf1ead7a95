"""The data set card of an export: what it is, how it was made, its figures and its plot."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from core.selection.measures import Curve
from core.workspace import KeptSelection, Run

COLOURS = ("#3b6fb6", "#9aa0a6", "#d9822b", "#3d9970")
WIDTH, HEIGHT, MARGIN = 360, 240, 44


def card(kept: KeptSelection, run: Run, file: str) -> str:
    """Markdown with the front matter that `datasets` reads. Names from the data are code, so that none is read as
    markup."""
    manifest = kept.manifest
    data, model = run.manifest["data"]["path"], run.manifest["model"]["name"]
    facts = "\n".join(f"| {name} | {_number(value)} |" for name, value in manifest["measures"].items())
    lines = [
        "---",
        f"configs:\n- config_name: default\n  data_files: {file}",
        "---",
        f"# {kept.name}",
        "",
        f"{manifest['budget']:,} of {manifest['pool']:,} examples of {_code(data)}, chosen by the rule "
        f"{_code(manifest['title'])} on the basis of {_code(model)} (run {run.id}), with Basiscope "
        f"{manifest['versions']['basiscope']}. The file is in selection order"
        + (": its first N rows are the selection for budget N." if manifest["nested"] else "."),
        "",
        "![Covering radius and mean distance against the budget, with a random selection](covering.svg)",
        "",
        f"| measure | value |\n|---|---|\n{facts}",
        "",
        "Read radius, mean distance and norm percentile together: coverage picks the outer shell.",
        "",
        _dropped(manifest),
        _sources(manifest["ledger"]),
        "`manifest.json` says everything that determined this selection; `basiscope select --from-manifest "
        "manifest.json` makes it again.",
    ]
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:.3f}"


def _code(text: object) -> str:
    """A text from the data as inline code, which no Markdown renderer reads as markup."""
    return "`" + " ".join(str(text).replace("`", "'").replace("|", "/").split()) + "`"


def _dropped(manifest: Mapping[str, Any]) -> str:
    if not manifest["dropped"]:
        return "Nothing was dropped.\n"
    rows = "\n".join(f"| {_code(reason)} | {count:,} |" for reason, count in manifest["dropped"].items())
    return f"| dropped because | examples |\n|---|---|\n{rows}\n"


def _sources(ledger: list[dict[str, Any]]) -> str:
    names = ("source", "examples", "share", "Shapley share", "leave one out", "terms", "problem")
    head = f"| {' | '.join(names)} |\n{'|---' * len(names)}|\n"
    rows = "".join(
        f"| {_code(row['source'])} | {row['examples']:,} | {row['share']:.1%} | {row['shapley share']:.1%} "
        f"| {row['leave one out']:.4f} | {row['terms']} | {_code(row['problem']) if row['problem'] else ''} |\n"
        for row in ledger[:30]
    )
    return f"{head}{rows}\nShapley shares are of coverage, not of training value.\n"


def covering_plot(curves: Mapping[str, Curve]) -> str:
    """SVG: radius (left) and mean distance (right) of each curve against the budget."""
    panels = [
        _panel("covering radius", {name: (c.budgets, c.radius) for name, c in curves.items()}, 0),
        _panel("mean distance", {name: (c.budgets, c.mean) for name, c in curves.items()}, WIDTH),
    ]
    names = "".join(
        f'<text x="{MARGIN + 130 * i}" y="16" fill="{COLOURS[i % len(COLOURS)]}">{escape(name)}</text>'
        for i, name in enumerate(curves)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>{names}{"".join(panels)}</svg>\n'
    )


def _panel(title: str, lines: Mapping[str, tuple[np.ndarray, np.ndarray]], left: int) -> str:
    most = max(float(values.max()) for _, values in lines.values()) or 1.0
    last = max(int(budgets[-1]) for budgets, _ in lines.values())
    right, bottom = left + WIDTH - 16, HEIGHT - 34

    def point(budget: float, value: float) -> str:
        x = left + MARGIN + (right - left - MARGIN) * budget / last
        return f"{x:.1f},{bottom - (bottom - 40) * value / most:.1f}"

    paths = []
    for i, (budgets, values) in enumerate(lines.values()):
        places = np.unique(np.linspace(0, len(budgets) - 1, 200).astype(int))
        points = " ".join(point(float(budgets[p]), float(values[p])) for p in places)
        colour = COLOURS[i % len(COLOURS)]
        paths.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
    axes = (
        f'<path d="M{left + MARGIN},40V{bottom}H{right}" fill="none" stroke="#888"/>'
        f'<text x="{left + MARGIN - 4}" y="46" text-anchor="end">{most:.1f}</text>'
        f'<text x="{left + MARGIN - 4}" y="{bottom}" text-anchor="end">0</text>'
        f'<text x="{right}" y="{bottom + 16}" text-anchor="end">{last:,}</text>'
        f'<text x="{(left + MARGIN + right) / 2:.0f}" y="{bottom + 28}" text-anchor="middle">'
        f"{title} against examples</text>"
    )
    return axes + "".join(paths)
