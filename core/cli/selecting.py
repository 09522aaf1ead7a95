"""`select`, `selections`, `compare-selections`, `screen`: from a basis to a training set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from core.cli.group import Reporter, cli, given_options, json_option, table, workspace_option
from core.errors import BasiscopeError
from core.limits import Limits
from core.selection import FORMATS, TUNINGS
from core.workspace import KeptSelection, Workspace, read_json

if TYPE_CHECKING:
    from core.selection.pool import Rule
    from core.selection.step import Request

QUOTA_HELP = (
    'Shares of the examples, also of a budget in tokens: "column=value:share,..."; a value with a comma '
    'in quotes, kind="a, b":0.5.'
)
BASELINE_HELP = "random, longest, shortest, text, label:COLUMN or order."


def selection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Rule, constraints and origins of a selection."""
    many: dict[str, Any] = {"multiple": True}
    options = [
        click.option("--along", help='Directions with polarity, such as "1+,3-": the highest scores.'),
        click.option(
            "--weights",
            help='How they share the budget: "3,1", utility (the run\'s own), or utility:COLUMN of verdicts.',
        ),
        click.option("--floor", type=float, help="Least score, in standard deviations, with --along."),
        click.option("--coverage", is_flag=True, help="Farthest points; with --along, within the useful end."),
        click.option("--useful-end", type=float, help="Its share of the pool.  [default: 0.2]"),
        click.option("--quality", help="Numeric column times diversity."),
        click.option(
            "--representative", type=click.Choice(["facility", "medoids"]), help="Near to all, not far from all."
        ),
        click.option("--baseline", help=BASELINE_HELP),
        click.option(
            "--text-model", help="With --baseline text: a sentence-transformers model, instead of TF-IDF."
        ),
        click.option("--trim", type=float, default=0.0, help="Leave out this share of the farthest outliers."),
        click.option("--budget", type=int, help="Examples."),
        click.option("--budget-tokens", type=int, help="Tokens."),
        click.option("--quota", help=QUOTA_HELP),
        click.option("--at-most", **many, help="column:share that no value may exceed, such as source_file:0.3."),
        click.option("--require", **many, help="Only examples that have a value here, such as a licence."),
        click.option("--min-tokens", type=int, help="Leave out examples shorter than this."),
        click.option("--max-tokens", type=int, help="Leave out examples longer than this."),
        click.option("--within-length-strata", is_flag=True, help="Match the pool's lengths."),
        click.option(
            "--dedup",
            type=click.Choice(["none", "exact", "near"]),
            is_flag=False,
            flag_value="near",
            help="Leave out repeats of earlier examples; without a value, near ones, too.",
        ),
        click.option("--against", **many, type=click.Path(dir_okay=False), help="Held-out file, flagged."),
        click.option("--drop-contaminated", is_flag=True, help="Remove what overlaps the held-out files."),
        click.option("--must", **many, help="Example id that must be in; id:reason."),
        click.option("--never", **many, help="Example id that must not; id:reason."),
        click.option("--set", "sets", **many, help="Only from this named set."),
        click.option("--seed", type=int, default=0, show_default=True, help="Of what is left to chance."),
        click.option("--source", help="Column that says which source an example is from."),
        click.option("--licence", help="Column with the licence."),
        click.option("--author", help="Column with the author."),
        click.option("--date", help="Column with the date."),
        click.option("--pay", type=float, default=0.0, help="A sum to share out by coverage value."),
        click.option(
            "--use",
            type=click.Choice(["research", "commercial"]),
            default="research",
            help="What licences must allow.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@cli.command()
@click.argument("run", required=False)
@selection_options
@click.option("--from-manifest", type=click.Path(dir_okay=False, path_type=Path), help="Make this one again.")
@click.option("--name", help="Name in the workspace; by default rule and hash.")
@click.option("--format", "form", type=click.Choice(FORMATS), help="Export for a trainer.  [default: rows]")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder of the export.")
@click.option("--tuning", type=click.Choice(TUNINGS), default="full", help="Of the training config.")
@click.option("--train-model", help="Model of the training config; the run's own by default.")
@click.option("--replace", "replace_old", is_flag=True, help="Replace a selection or export of that name.")
@workspace_option
@json_option
def select(
    run: str | None,
    from_manifest: Path | None,
    name: str | None,
    form: str | None,
    out: Path | None,
    tuning: str,
    train_model: str | None,
    replace_old: bool,
    workspace: Path,
    as_json: bool,
    **options: Any,
) -> dict[str, Any]:
    """Select examples of RUN, keep the selection, and export it with --format or --out.

    \b
    basiscope select latest --along "1+,3-" --budget 500 --name verbal --format trl --out verbal
    basiscope select latest --coverage --budget 200 --quota "subject=Algebra:0.3" --dedup near
    basiscope select --from-manifest verbal/manifest.json --name again --format trl --out again
    """
    from core.selection.export import check_export, export
    from core.selection.step import Request, reproduce
    from core.selection.step import select as select_examples

    space = Workspace(workspace)
    if (run is None) == (from_manifest is None):
        raise click.UsageError("Give one of RUN and --from-manifest.")
    typed = given_options()
    if from_manifest and (given := [typed[name] for name in typed if name in options]):
        raise click.UsageError(f"--from-manifest says everything; leave out {', '.join(given)}.")
    if form is None and out:
        form = "rows"
    if form in (None, "rows", "parquet") and (idle := typed.get("tuning") or typed.get("train_model")):
        raise click.UsageError(
            f"{idle} is of an export's training config; add --format of a trainer, such as trl."
        )
    with Reporter(as_json) as progress:
        manifest = read_json(from_manifest) if from_manifest else None
        if from_manifest is None:
            request = build_selection(space, str(run), options)
        elif isinstance(manifest, dict):
            request = Request.from_dict(manifest.get("request", {}))
        else:
            raise BasiscopeError(f"{from_manifest} is no manifest of a selection.")
        called = name or request.name
        if form:
            check_export(space.run(request.run), form, tuning, out, replace_old)
        if isinstance(manifest, dict):
            kept = reproduce(manifest, space, called, replace_old, progress, again=bool(form))
        else:
            kept = select_examples(request, space, called, replace_old, progress, again=bool(form))
        files: list[str] = []
        if form:
            out = out or kept.folder / "export" / form
            files = export(kept, space.run(kept.run), out, form, tuning, train_model, replace_old)
    return {"name": kept.name, "folder": str(kept.folder), "out": str(out) if form else None, "files": files} | {
        **_facts(kept),
        "lines": [*_sentences(kept), *([f"exported as {form}: {out}"] if form else []), kept.name],
    }


def parse_selection(space: Workspace, arguments: list[str]) -> Request:
    """The Request that `basiscope ARGUMENTS` would make, ARGUMENTS beginning with `select`. Raises BasiscopeError
    with the sentence that the command line would print."""
    Limits.now().check_arguments(arguments)
    try:
        parsed = select.make_context("select", arguments[1:]).params
        return build_selection(space, parsed["run"], parsed)
    except click.UsageError as error:
        raise BasiscopeError(error.format_message()) from error


def build_selection(space: Workspace, run: str, options: dict[str, Any]) -> Request:
    """A Request from the options of `select`. Raises click.UsageError where they contradict each other."""
    from core.provenance import Origins
    from core.selection.pool import Constraints, parse_quotas
    from core.selection.step import Request, stored_weights

    opened = space.run(run)
    try:
        rule, weights_by = build_rule(options)
        if options["weights"] == "utility":
            rule = replace(rule, weights=stored_weights(opened.id, rule.directions, space))
        constraints = Constraints(
            budget=options["budget"],
            budget_tokens=options["budget_tokens"],
            quotas=parse_quotas(options["quota"]) if options["quota"] else (),
            caps=tuple(_cap(text) for text in options["at_most"]),
            min_tokens=options["min_tokens"],
            max_tokens=options["max_tokens"],
            within_length_strata=options["within_length_strata"],
            dedup=options["dedup"] or "none",
            against=_absolute(options["against"]),
            drop_contaminated=options["drop_contaminated"],
            must=tuple(_example(text, "--must") for text in options["must"]),
            never=tuple(_example(text, "--never") for text in options["never"]),
            only=_sets(space, opened.id, options["sets"]),
            required=options["require"],
        )
        if constraints.drop_contaminated and not constraints.against:
            raise BasiscopeError("--drop-contaminated removes what overlaps held-out files; name them, --against.")
        names = {name: options[name] for name in ("source", "licence", "author", "date", "use")}
        origins = Origins(**names, total=options["pay"])
        if origins.total and not origins.source:
            raise BasiscopeError("--pay is shared out among sources; name their column, --source.")
        return Request(opened.id, rule, constraints, origins, weights_by)
    except BasiscopeError as error:
        raise click.UsageError(str(error)) from error


def build_rule(options: dict[str, Any]) -> tuple[Rule, str | None]:
    """(rule, column of verdicts to weigh the directions by)."""
    from core.selection.pool import BASELINES, USEFUL_END, Rule, parse_directions

    directions = parse_directions(options["along"]) if options["along"] else ()
    chosen = {
        "quality": options["quality"],
        options["representative"]: options["representative"],
        "both": directions and options["coverage"],
        "coverage": options["coverage"] and not directions,
        "along": directions and not options["coverage"],
        "baseline": options["baseline"],
    }
    named = [name for name, value in chosen.items() if name and value]
    if len(named) != 1:
        raise BasiscopeError("Give one rule: --along, --coverage, --quality, --representative or --baseline.")
    name, column = named[0], options["quality"]
    if name == "baseline":
        name, _, column = options["baseline"].partition(":")
        if name not in BASELINES:
            raise BasiscopeError(f"Baseline {name!r} is not one of {BASELINE_HELP}")
        if column and name != "label":
            raise BasiscopeError(f"--baseline {name} takes no column; label:{column} does.")
    if name != "along" and (options["floor"] is not None or options["weights"]):
        raise BasiscopeError("--floor and --weights go with --along alone.")
    if name != "both" and options["useful_end"] is not None:
        raise BasiscopeError(
            "--useful-end goes with --along and --coverage together; name at least one direction."
        )
    if name != "text" and options["text_model"]:
        raise BasiscopeError("--text-model goes with --baseline text.")
    weights: tuple[float, ...] = ()
    weights_by = None
    if options["weights"] and options["weights"].startswith("utility:"):
        weights_by = options["weights"].removeprefix("utility:")
        if not weights_by:
            raise BasiscopeError(
                "--weights utility:COLUMN names a column of verdicts; `utility` alone takes none."
            )
    elif options["weights"] and options["weights"] != "utility":
        weights = tuple(_number(part, "--weights") for part in options["weights"].split(","))
    rule = Rule(
        name,
        directions,
        weights,
        options["floor"],
        USEFUL_END if options["useful_end"] is None else options["useful_end"],
        column or None,
        options["trim"],
        options["seed"],
        options["text_model"],
    )
    return rule, weights_by


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise BasiscopeError(f"{option} {text!r}: not a number.") from error


def _absolute(paths: tuple[str, ...]) -> tuple[str, ...]:
    """Paths that mean the same from any folder, as a manifest needs."""
    return tuple(str(Path(path).expanduser().absolute()) for path in paths)


def _cap(text: str) -> tuple[str, float]:
    column, _, share = text.rpartition(":")
    value = _number(share, "--at-most")
    if not column or not 0 < value <= 1:
        raise BasiscopeError(f"--at-most {text!r}: write column:share, the share between 0 and 1.")
    return column, value


def _example(text: str, option: str) -> tuple[int, str]:
    number, _, reason = text.partition(":")
    if not number.strip().isdigit():
        raise BasiscopeError(f"{option} {text!r}: write an example id, or id:reason.")
    return int(number), reason.strip() or "by hand"


def _sets(space: Workspace, run_id: str, names: tuple[str, ...]) -> tuple[int, ...]:
    known = {named.name: named.example_id for named in space.sets(run_id)}
    missing = [name for name in names if name not in known]
    if missing:
        raise BasiscopeError(
            f"--set {missing[0]!r}: run {run_id} has no such set; it has {', '.join(known) or 'none yet'}."
        )
    return tuple(sorted({example for name in names for example in known[name]}))


def _facts(kept: KeptSelection) -> dict[str, Any]:
    keys = ("title", "budget", "tokens", "pool", "measures", "dropped", "ledger", "notes")
    facts = {key: kept.manifest[key] for key in keys}
    facts |= {key: kept.manifest.get(key) for key in ("duplicates", "licence_conflicts")}
    return {"run": kept.run, **facts, "overlaps": len(kept.manifest["overlaps"])}


def _sentences(kept: KeptSelection) -> list[str]:
    manifest = kept.manifest
    found = manifest["measures"]
    dropped = [f"dropped: {count:,} {reason}" for reason, count in manifest["dropped"].items()]
    if manifest["overlaps"]:
        inside = sum(overlap["chosen"] for overlap in manifest["overlaps"])
        dropped.append(f"{len(manifest['overlaps'])} overlaps with held-out files, {inside} of them chosen")
    return [
        f"{manifest['title']}: {manifest['budget']:,} of {manifest['pool']:,} examples, "
        f"{manifest['tokens']:,} tokens",
        f"covering radius {found['covering radius']:.3f}, mean distance {found['mean distance']:.3f}, norm "
        f"percentile {found['norm percentile']:.0%}: read them together",
        f"median length {found['median length']:.0f} tokens, longer than an example of the pool with probability "
        f"{found['longer than pool']:.2f}",
        *dropped,
        *(f"licences: {sentence}" for sentence in manifest.get("licence_conflicts", ())),
        *manifest["notes"],
    ]


@cli.command()
@click.argument("run")
@click.option("--against", multiple=True, type=click.Path(dir_okay=False), help="Held-out file.")
@workspace_option
@json_option
def screen(run: str, against: tuple[str, ...], workspace: Path, as_json: bool) -> dict[str, Any]:
    """Look for duplicates in RUN's texts, and for 13 words in a row shared with held-out files.

    Most such overlaps are no contamination: each is shown with the words it shares.
    """
    from core.selection.step import screen_run

    space = Workspace(workspace)
    with Reporter(as_json) as progress:
        found = screen_run(space.run(run), space, _absolute(against), progress)
    lines = [
        f"{len(found.exact):,} exact and {len(found.duplicates('near')):,} near or exact duplicates",
        f"{len(found.overlaps):,} overlaps with held-out files",
        *found.problems,
    ]
    lines += [f"  example {o.example_id}, {o.file} row {o.row}, {o.share:.0%}: {o.words}" for o in found.overlaps]
    return found.as_dict() | {"lines": lines}


@cli.command()
@click.argument("run")
@click.option("--text-model", help="A sentence-transformers model, instead of TF-IDF.")
@workspace_option
@json_option
def vectors(run: str, text_model: str | None, workspace: Path, as_json: bool) -> dict[str, Any]:
    """Turn RUN's texts into vectors, which text diversity needs; kept for the next time."""
    from core.selection.step import vectors_of

    space = Workspace(workspace)
    opened = space.run(run)
    with Reporter(as_json) as progress:
        n, dimensions = vectors_of(opened, space, text_model, progress).shape
    return {"run": opened.id, "n": n, "dimensions": dimensions, "lines": [f"{n:,} texts, {dimensions} dimensions"]}


@cli.command()
@workspace_option
@json_option
def selections(workspace: Path, as_json: bool) -> dict[str, Any]:
    """List the selections kept in the workspace."""
    space, rows = Workspace(workspace), list[dict[str, Any]]()
    for kept in space.selections():
        try:
            rows.append({"name": kept.name, **_facts(kept)})
        except (BasiscopeError, KeyError, TypeError) as error:
            rows.append({"name": kept.name, "run": "damaged", "title": f"{kept.folder}: its manifest ({error})"})
    rows += [{"name": one.name, "run": "damaged", "title": one.reason} for one in space.damaged("selection")]
    keys = ("name", "run", "title", "budget", "tokens", "pool")
    return {"selections": rows, "lines": table(rows, keys) if rows else [f"No selections in {workspace} yet."]}


@cli.command("compare-selections")
@click.argument("names", nargs=-1, required=True)
@workspace_option
@json_option
def compare_selections(names: tuple[str, ...], workspace: Path, as_json: bool) -> dict[str, Any]:
    """Compare kept selections: their measures, and how much they overlap."""
    from core.selection.measures import overlap

    space = Workspace(workspace)
    kept = [space.selection(name) for name in dict.fromkeys(names)]
    if len(kept) < 2:
        raise click.UsageError("Name at least two selections.")
    runs = {one.run for one in kept}
    if len(runs) > 1:
        raise BasiscopeError(f"These selections are of different runs ({', '.join(sorted(runs))}).")
    rows = [{"name": one.name, **one.manifest["measures"]} for one in kept]
    shared = overlap({one.name: one.example_ids for one in kept})
    shown = [
        {k: v if isinstance(v, str) else f"{v:,.3f}".rstrip("0").rstrip(".") for k, v in row.items()}
        for row in rows
    ]
    pairs = shared.round(2).to_dict()
    overlaps: list[dict[str, Any]] = [{"overlap": str(a)} | {str(b): pairs[a][b] for b in pairs} for a in pairs]
    lines = [*table(shown, tuple(shown[0])), "", *table(overlaps, tuple(overlaps[0]))]
    return {"selections": rows, "overlap": shared.to_dict(), "lines": lines}
