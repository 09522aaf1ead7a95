"""The data set card of an export: what it is, how it was made, its figures and its plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.provenance import NO_SOURCE
from core.workspace import KeptSelection, Run

MOST_LISTED, MOST_SOURCES = 20, 30
PLOTS = {
    "covering.svg": "Covering radius and mean distance against the budget, with a random selection",
    "directions.svg": "The chosen on every direction, and their lengths, against the pool",
    "composition.svg": "What the selection, the pool and a random selection are made of",
    "map.svg": "The chosen on the map of the pool",
}


def card(kept: KeptSelection, run: Run, file: str, plots: Sequence[str]) -> str:
    """Markdown with the front matter that `datasets` reads, and the plots of these names. Names from the data
    are code, so that none is read as markup."""
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
        *(f"![{PLOTS[name]}]({name})\n" for name in plots),
        f"| measure | value |\n|---|---|\n{facts}",
        "",
        "Read radius, mean distance and norm percentile together: farthest-point coverage picks the outer shell.",
        "",
        _dropped(manifest),
        _screened(manifest),
        _sources(manifest["ledger"], manifest["request"]["origins"]["source"]),
        *(f"- {_code(sentence)}" for sentence in manifest.get("licence_conflicts", ())),
        *(f"- {_code(note)}" for note in manifest["notes"]),
        "",
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


def _screened(manifest: Mapping[str, Any]) -> str:
    """What was found of duplicates and of overlaps with held-out files, where they were looked for."""
    if manifest["duplicates"] is None:
        return "Duplicates and overlaps with held-out files were not looked for.\n"
    found, overlaps = manifest["duplicates"], manifest["overlaps"]
    repeated = (
        f"{len(found):,} examples of the pool repeat an earlier one, {sum(one['chosen'] for one in found):,} of "
        "them are chosen."
    )
    if not manifest["request"]["constraints"]["against"]:
        return f"{repeated} Overlaps with held-out files were not looked for.\n"
    inside = [overlap for overlap in overlaps if overlap["chosen"]]
    listed = "".join(
        f"- example {o['example_id']}, {_code(o['file'])} row {o['row']}, {o['share']:.0%}: {_code(o['words'])}\n"
        for o in inside[:MOST_LISTED]
    )
    return (
        f"{repeated} {len(overlaps):,} share 13 words in a row with a held-out file, {len(inside):,} of "
        f"them are chosen{':' if inside else '.'}\n\n{listed}{_cut(len(inside), MOST_LISTED)}"
    )


def _cut(found: int, listed: int) -> str:
    """What a list leaves out, said where it leaves out anything."""
    return f"\nAnd {found - listed:,} more, in `manifest.json`.\n" if found > listed else ""


def _sources(ledger: list[dict[str, Any]], column: str | None) -> str:
    if column is None:
        (whole,) = ledger
        licence = f" Terms of the licences: {whole['terms']}." if whole.get("licence") else ""
        return f"{NO_SOURCE}{licence}\n"
    names = ("source", "examples", "share", "Shapley share", "leave one out", "terms", "problem")
    head = f"| {' | '.join(names)} |\n{'|---' * len(names)}|\n"
    rows = "".join(
        f"| {_code(row['source'])} | {row['examples']:,} | {row['share']:.1%} | {row['shapley share']:.1%} "
        f"| {row['leave one out']:.4f} | {row['terms']} | {_code(row['problem']) if row['problem'] else ''} |\n"
        for row in ledger[:MOST_SOURCES]
    )
    more = _cut(len(ledger), MOST_SOURCES)
    return f"{head}{rows}{more}\nShapley shares are of coverage, not of training value.\n"
