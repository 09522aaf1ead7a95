"""The command line: one command per step, each a thin adapter over the core."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from core import __version__
from core.errors import BasiscopeError
from core.workspace import DEFAULT_ROOT, Run, Workspace, is_disk_full

if TYPE_CHECKING:
    from core.recovery import Request

workspace_option = click.option(
    "--workspace",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT_ROOT,
    show_default=True,
    help="Folder with the runs.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="basiscope")
def cli() -> None:
    """Recover a language model's own basis for a data set, read it, and act on it.

    RUN is a run's id, a unique beginning of it, or `latest`. Directions count from 1. Exit status: 0 fine,
    1 could not, 2 wrong usage.
    """


# --- recover --------------------------------------------------------------------------------------------

PRESETS = {"reasoning": ("mean", "1:-1", "auto"), "safety": ("last", "middle", "chat-prompt")}


def recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say what to recover, shared by `recover` and nothing else yet."""
    options = [
        click.option("--model", required=True, help="Local folder or hub id of a causal language model."),
        click.option("--revision", help="Revision of a hub model."),
        click.option(
            "--data", required=True, help="JSONL, JSON, CSV, TSV or Parquet file, a folder, or a hub id."
        ),
        click.option("--config", help="Configuration of a hub data set."),
        click.option("--split", help="Split of a hub data set."),
        click.option("--text", help="Column with the whole text. Nested fields: a.b."),
        click.option("--prompt", help="Column with the prompt."),
        click.option("--response", help="Column with the response, with --prompt."),
        click.option("--messages", help="Column with chat messages: a list of {role, content}."),
        click.option("--limit", type=int, help="Read only the first N rows."),
        click.option("--k", type=int, default=10, show_default=True, help="Number of directions."),
        click.option(
            "--recipe",
            "preset",
            type=click.Choice(list(PRESETS)),
            default="reasoning",
            show_default=True,
            help="Published recipe that sets --pooling, --blocks and --template where they are not given: "
            "reasoning is mean over blocks 1:-1, safety the last token of the chat-templated prompt in the "
            "middle block.",
        ),
        click.option("--pooling", type=click.Choice(["mean", "mean-response", "last"]), help="Tokens pooled."),
        click.option("--blocks", help="Blocks pooled: a range such as 1:-1, or one such as 15."),
        click.option(
            "--block-scale",
            type=click.Choice(["raw", "rms"]),
            default="raw",
            show_default=True,
            help="rms divides each block by its root mean square, so that late blocks do not dominate.",
        ),
        click.option("--max-tokens", type=int, default=8_000, show_default=True, help="Cut texts here."),
        click.option(
            "--template",
            type=click.Choice(["auto", "plain", "chat", "chat-prompt"]),
            help="How prompt, response and messages become one text.",
        ),
        click.option(
            "--dtype",
            type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
            default="auto",
            show_default=True,
            help="auto: bfloat16 where the hardware has it.",
        ),
        click.option(
            "--store-dtype",
            type=click.Choice(["float32", "float16"]),
            default="float32",
            show_default=True,
            help="float16 halves the disk space of the activations.",
        ),
        click.option("--seed", type=int, default=0, show_default=True, help="Of the basis and the map."),
        click.option("--token-budget", type=int, help="Tokens per batch. Default: by device."),
        click.option("--no-map", is_flag=True, help="Leave out the UMAP map."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@cli.command()
@recipe_options
@click.option("--estimate", is_flag=True, help="Only say what it would cost: tokens, time, memory, disk.")
@device_option
@workspace_option
@json_option
def recover(estimate: bool, workspace: Path, as_json: bool, **options: Any) -> dict[str, Any]:
    """Run MODEL over DATA, pool its residual stream and recover the basis.

    Prints the run's id as its last line. A command that was stopped continues where it was when it is given
    again.

    \b
    basiscope recover --model Qwen/Qwen2.5-0.5B --data openai/gsm8k --config main --split train \\
        --prompt question --response answer
    basiscope recover --model ./my-model --data notes.jsonl --text body --k 25
    """
    request = build_request(options)
    if estimate:
        from core.estimate import estimate_recovery
        from core.tables import estimate_sentences

        facts = vars(estimate_recovery(request, Workspace(workspace)))
        sentences = estimate_sentences(facts)
        return facts | {"sentences": sentences, "lines": sentences}
    from core.recovery import recover as recover_run

    with Reporter(as_json) as progress:
        run = recover_run(request, Workspace(workspace), progress)
    manifest = run.manifest
    lines = [f"warning: {warning}" for warning in manifest["warnings"]]
    lines.append(f"{manifest['n']:,} examples, {manifest['d']:,} dimensions, {run.k} directions: {run.folder}")
    return {"run": run.id, "lines": [*lines, run.id]}


def build_request(options: dict[str, Any]) -> Request:
    """A Request from the options of `recover`. Raises click.UsageError where they contradict each other."""
    from core.activations import Recipe
    from core.examples import Columns, DataSource
    from core.recovery import Request

    pooling, blocks, template = PRESETS[options["preset"]]
    try:
        return Request(
            model=options["model"],
            revision=options["revision"],
            source=DataSource(options["data"], options["config"], options["split"], limit=options["limit"]),
            columns=Columns(options["text"], options["prompt"], options["response"], options["messages"]),
            recipe=Recipe(
                pooling=options["pooling"] or pooling,
                blocks=options["blocks"] or blocks,
                block_scale=options["block_scale"],
                max_tokens=options["max_tokens"],
                template=options["template"] or template,
                dtype=options["dtype"],
            ),
            k=options["k"],
            seed=options["seed"],
            device=options["device"],
            store_dtype=options["store_dtype"],
            with_map=not options["no_map"],
            token_budget=options["token_budget"],
        )
    except BasiscopeError as error:
        raise click.UsageError(str(error)) from error


# --- reading --------------------------------------------------------------------------------------------


@cli.command()
@workspace_option
@json_option
def runs(workspace: Path, as_json: bool) -> dict[str, Any]:
    """List every run: id, model, data, n, d, k, status."""
    space = Workspace(workspace)
    rows = [_run_row(run) for run in space.runs()]
    for run_id, request in space.partial_manifests().items():
        status = "running" if space.is_locked(run_id) else "interrupted"
        rows.append({"run": run_id, "status": status, "k": request["k"], **request.get("asked", {})})
    keys = ("run", "status", "n", "d", "k", "model", "data")
    return {"runs": rows, "lines": table(rows, keys) if rows else [f"No runs in {workspace} yet."]}


def _run_row(run: Run) -> dict[str, Any]:
    try:
        manifest = run.manifest
    except BasiscopeError as error:
        return {"run": run.id, "status": "unreadable", "model": str(error)}
    row = {"run": run.id, "status": "finished"} | {key: manifest[key] for key in ("n", "d", "k", "created")}
    return row | {"model": manifest["model"]["name"], "data": manifest["data"]["path"]}


@cli.command()
@click.argument("run")
@click.option("--direction", type=int, help="One direction in full.")
@click.option("--polarity", type=click.Choice(["+", "-"]), help="Only this end of the direction.")
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="Examples at each end.")
@click.option(
    "--rank",
    type=click.Choice(["score", "cosine"]),
    default="score",
    show_default=True,
    help="By the centred score, or by the published uncentred cosine.",
)
@workspace_option
@json_option
def show(
    run: str, direction: int | None, polarity: str | None, top: int, rank: str, workspace: Path, as_json: bool
) -> dict[str, Any]:
    """Show a run: all its directions, or the examples at the ends of one."""
    opened = Workspace(workspace).run(run)
    if direction is None:
        return _show_run(opened)
    _check_direction(opened, direction)
    return _show_direction(opened, direction, polarity or "+-", top, rank)


def _check_direction(run: Run, direction: int) -> None:
    if not 1 <= direction <= run.k:
        raise BasiscopeError(f"Direction {direction}: run {run.id} has directions 1 to {run.k}.")


def _show_run(run: Run) -> dict[str, Any]:
    manifest, labels = run.manifest, run.labels()
    rows = json.loads(run.directions().to_json(orient="records"))
    for row in rows:
        row["label"] = labels[row["direction"]].text if row["direction"] in labels else ""
    shown = [
        {
            "direction": row["direction"],
            "variance": f"{row['explained_variance']:.1%}",
            "95% interval": f"{row['explained_variance_low']:.1%} to {row['explained_variance_high']:.1%}",
            "angle": f"{row['angle']:.0f} to {row['angle_95']:.0f} deg",
            "group": row["group"] + 1,
            "label": row["label"],
        }
        for row in rows
    ]
    lines = [
        f"run {run.id}, {manifest['created']}",
        f"model {manifest['model']['name']}, data {manifest['data']['path']}",
        f"{manifest['n']:,} examples, {manifest['d']:,} dimensions, blocks {manifest['recipe']['blocks']}, "
        f"pooling {manifest['recipe']['pooling']}, block scale {manifest['recipe']['block_scale']}",
        *(f"warning: {warning}" for warning in manifest["warnings"]),
        "",
        *table(shown, ("direction", "variance", "95% interval", "angle", "group", "label")),
        "",
        "angle: median and 95th percentile of the turn under resampling. Directions of one group are stable "
        "only as a span.",
    ]
    return {"manifest": manifest, "directions": rows, "lines": lines}


def _show_direction(run: Run, direction: int, polarities: str, top: int, rank: str) -> dict[str, Any]:
    from core.reading import POLARITIES, rank_examples

    examples = run.examples().rename(columns={rank: f"data_{rank}"})
    values = (run.scores() if rank == "score" else run.cosines())[f"d{direction}"].to_numpy()
    label = run.labels().get(direction)
    lines = [f"direction {direction}: {label.text if label else 'no label'}"]
    ends: dict[str, list[dict[str, Any]]] = {}
    for polarity in polarities:
        positions = rank_examples(values, POLARITIES[polarity], top)
        chosen = examples.iloc[positions].assign(**{rank: values[positions]})
        ends[polarity] = json.loads(chosen.to_json(orient="records", double_precision=15))
        lines.append(f"\n{polarity} end")
        for row in ends[polarity]:
            text = " ".join(row["text"].split())
            lines.append(f"  {row[rank]:+.4g}  example {row['example_id']}  {text[:160]}")
    return {"direction": direction, "label": label.as_dict() if label else None, "ends": ends, "lines": lines}


@cli.command()
@click.argument("run")
@click.option("--direction", type=int, help="Only this direction.")
@click.option("--set", "text", help='Your own label, such as "explains : computes".')
@click.option("--words", is_flag=True, help="Make the label from the texts anew.")
@click.option("--llm", is_flag=True, help="Ask the language model at BASISCOPE_LLM_URL.")
@workspace_option
@json_option
def label(
    run: str, direction: int | None, text: str | None, words: bool, llm: bool, workspace: Path, as_json: bool
) -> dict[str, Any]:
    """Show or set the labels of a run's directions.

    Without --direction, --words and --llm leave the labels alone that a person has set.

    --llm sends the ten most extreme examples of each end to an OpenAI-compatible server: BASISCOPE_LLM_URL
    (such as http://localhost:8000/v1), BASISCOPE_LLM_MODEL, and BASISCOPE_LLM_KEY where it needs one.
    """
    from core.reading import Label
    from core.recovery import label_by_endpoint, label_run

    if sum([text is not None, words, llm]) > 1:
        raise click.UsageError("Give one of --set, --words and --llm.")
    if text is not None and (direction is None or not text.strip()):
        raise click.UsageError("--set needs --direction and a text that is not empty.")
    opened = Workspace(workspace).run(run)
    if direction is not None:
        _check_direction(opened, direction)
    directions = [direction] if direction else list(range(1, opened.k + 1))
    by_hand = {j for j, found in opened.labels().items() if found.source == "person" and direction is None}
    others = [j for j in directions if j not in by_hand]
    with Reporter(as_json) as progress:
        if text is not None:
            opened.save_label(directions[0], Label(text.strip(), "person"))
        elif words:
            label_run(opened, others, progress)
        elif llm:
            label_by_endpoint(opened, others, progress)
    labels = {j: found for j, found in opened.labels().items() if j in directions}
    lines = [f"{j}  {found.text}  ({found.source})" for j, found in labels.items()]
    return {"labels": {str(j): found.as_dict() for j, found in labels.items()}, "lines": lines}


@cli.command()
@click.argument("run")
@click.option("--example", "examples", type=int, multiple=True, help="An example's id; may be repeated.")
@device_option
@workspace_option
@json_option
def tokens(run: str, examples: tuple[int, ...], device: str, workspace: Path, as_json: bool) -> dict[str, Any]:
    """Score every token of some examples on all directions, and keep the scores with the run.

    Without --example: the examples at both ends of every direction.
    """
    from core.recovery import extreme_examples, load_run_model, shade_examples

    opened = Workspace(workspace).run(run)
    chosen = list(examples) or extreme_examples(opened)
    missing = [example for example in chosen if opened.token_scores(example) is None]
    with Reporter(as_json) as progress:
        if missing:
            shade_examples(opened, load_run_model(opened, device), missing, progress)
    return {"examples": chosen, "lines": [f"{len(chosen)} examples have token scores."]}


# --- the rest -------------------------------------------------------------------------------------------


@cli.command()
@workspace_option
@json_option
def demo(workspace: Path, as_json: bool) -> dict[str, Any]:
    """Recover the embedded demo: a small model, trained on generated word problems. Needs no network."""
    from core.demo.default import recover_demo

    with Reporter(as_json) as progress:
        run = recover_demo(Workspace(workspace), progress)
    return {"run": run.id, "lines": [run.id]}


@cli.command()
@workspace_option
@json_option
def doctor(workspace: Path, as_json: bool) -> dict[str, Any]:
    """Versions, device, memory, and what is missing."""
    from core.doctor import examine

    facts = examine(Workspace(workspace))
    return facts | {"lines": [f"{name}: {value}" for name, value in facts.items()]}


@cli.command()
@click.option("--port", type=int, default=8501, show_default=True, help="Port on localhost.")
@click.option("--headless", is_flag=True, help="Do not open a browser.")
@workspace_option
def app(port: int, headless: bool, workspace: Path) -> None:
    """Open the web app on this workspace, on localhost only.

    An empty workspace begins with the embedded demo, recovered in the background.
    """
    from core.jobs import list_jobs, start_job

    root = Path(__file__).resolve().parent.parent
    space = Workspace(workspace)
    if not space.runs() and not any(job.state == "running" for job in list_jobs(space)):
        start_job(space, ["demo"])
    os.environ["BASISCOPE_WORKSPACE"] = str(workspace.resolve())
    flags = ["--server.port", str(port), "--server.headless", "true" if headless else "false"]
    os.chdir(root)
    os.execv(sys.executable, [sys.executable, "-m", "streamlit", "run", "serve.py", *flags])


def table(rows: list[dict[str, Any]], keys: tuple[str, ...]) -> list[str]:
    """Rows as aligned text columns under a header."""
    cells = [keys, *(tuple(str(row.get(key, "")) for key in keys) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(keys))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    ]


# --- running a command ----------------------------------------------------------------------------------


class Reporter:
    """Progress of a command: into its job's folder, as bars on a terminal, or nowhere."""

    def __init__(self, as_json: bool) -> None:
        from core.jobs import JOB_VARIABLE, JobReporter

        folder = os.environ.get(JOB_VARIABLE)
        self._job = JobReporter(Path(folder)) if folder else None
        self._quiet = as_json or not sys.stderr.isatty()
        self._bar: Any = None
        self._step = ""

    def __enter__(self) -> Callable[[str, int, int], None]:
        return self.progress

    def __exit__(self, *_error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def progress(self, step: str, done: int, total: int) -> None:
        if self._job:
            self._job.progress(step, done, total)
        elif not self._quiet:
            self._draw(step, done, total)

    def _draw(self, step: str, done: int, total: int) -> None:
        from tqdm import tqdm

        if step != self._step:
            if self._bar is not None:
                self._bar.close()
            self._bar = tqdm(total=total or None, desc=step, unit_scale=True, initial=done, file=sys.stderr)
            self._step = step
        self._bar.update(done - self._bar.n)


def _print_results(command: click.Command) -> None:
    """Have a command that returns a dict print its `lines`, or with --json everything but these."""
    inner = command.callback
    assert inner is not None

    @wraps(inner)
    def printing(*args: Any, **kwargs: Any) -> Any:
        result = inner(*args, **kwargs)
        if result is None:
            return None
        lines = result.pop("lines", [])
        click.echo(json.dumps(result, ensure_ascii=False) if kwargs["as_json"] else "\n".join(lines))
        return result

    command.callback = printing


for _command in cli.commands.values():
    _print_results(_command)


def _quiet_libraries() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false" if sys.platform == "darwin" else "true")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def _stop(_signal: int, _frame: Any) -> None:
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status; a job's result goes into its folder, too."""
    from core.jobs import JOB_VARIABLE, JobReporter

    _quiet_libraries()
    signal.signal(signal.SIGTERM, _stop)
    folder = os.environ.get(JOB_VARIABLE)
    job = JobReporter(Path(folder)) if folder else None
    status, state, result = _run(arguments)
    if job:
        job.finish(state, result)
    if status == 1 and "message" in result:
        click.echo(result["message"], err=True)
    return status


def _run(arguments: list[str] | None) -> tuple[int, str, dict[str, Any]]:
    """(exit status, job state, result)."""
    from core.jobs import STOPPED

    try:
        result = cli.main(arguments, standalone_mode=False)
        return 0, "done", result if isinstance(result, dict) else {}
    except click.UsageError as error:
        error.show()
        return 2, "failed", {"message": error.format_message()}
    except (KeyboardInterrupt, click.Abort):
        return 1, "cancelled", {"message": STOPPED}
    except BasiscopeError as error:
        return 1, "failed", {"message": str(error)}
    except BrokenPipeError:
        return 1, "failed", {}
    except Exception as error:
        if is_disk_full(error):
            return 1, "failed", {"message": f"The disk is full ({error}). Free some space and start again."}
        import traceback

        traceback.print_exc()
        return 1, "failed", {"message": f"Unexpected error: {type(error).__name__}: {error}"}


if __name__ == "__main__":
    sys.exit(main())
