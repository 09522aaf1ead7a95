"""`recover`: from a model and a data set to a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from core.activations import PRESETS, Recipe
from core.cli.group import Reporter, cli, device_option, json_option, workspace_option
from core.errors import BasiscopeError
from core.workspace import Workspace

if TYPE_CHECKING:
    from core.recovery import Request


def recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say what to recover, shared by `recover` and nothing else yet."""
    options = [
        click.option("--model", required=True, help="Local folder or hub id of a causal language model."),
        click.option("--revision", help="Revision of a hub model."),
        click.option(
            "--data", required=True, help="JSONL, JSON, CSV, TSV or Parquet file, a folder, or a hub id."
        ),
        click.option("--config", help="Configuration of a hub data set."),
        click.option("--split", help="Split of a hub data set, or of a folder whose names tell splits."),
        click.option("--text", help="Column with the whole text. Nested fields: a.b."),
        click.option("--prompt", help="Column with the prompt: a text, or chat messages."),
        click.option("--input", help="Column with what the prompt is about, as Alpaca has it, with --prompt."),
        click.option("--response", help="Column with the response, with --prompt; as that."),
        click.option("--messages", help="Column with chat messages: a list of {role, content}, or its JSON."),
        click.option("--limit", type=int, help="Read only the first N rows."),
        click.option(
            "--k",
            type=int,
            help="Number of directions.  [default: 10 for reasoning, 25 for safety]",
        ),
        click.option(
            "--recipe",
            "preset",
            type=click.Choice(list(PRESETS)),
            default="reasoning",
            show_default=True,
            help="Published recipe that sets --k, --pooling, --blocks and --template where they are not given: "
            "reasoning is mean over blocks 1:-1, safety the last token of the chat-templated prompt in the "
            "middle block.",
        ),
        click.option("--pooling", type=click.Choice(["mean", "mean-response", "last"]), help="Tokens pooled."),
        click.option(
            "--blocks",
            help="Blocks pooled, counted from 0: a range as in Python, such as 1:-1 for all but the first and "
            "the last, or one such as 15.",
        ),
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
        click.option(
            "--seed",
            type=click.IntRange(0, 2**32 - 1),
            default=0,
            show_default=True,
            help="Of the basis and the map.",
        ),
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
    from core.selection.farthest import compile_ahead

    space = Workspace(workspace)
    before = {run.id for run in space.runs()}
    with Reporter(as_json) as progress:
        run = recover_run(request, space, progress)
        if run.id not in before:
            compile_ahead(progress)
    manifest = run.manifest
    lines = [f"warning: {warning}" for warning in manifest["warnings"]]
    lines.append(f"{manifest['n']:,} examples, {manifest['d']:,} dimensions, {run.k} directions: {run.folder}")
    return {"run": run.id, "lines": [*lines, run.id]}


def build_request(options: dict[str, Any]) -> Request:
    """A Request from the options of `recover`. Raises click.UsageError where they contradict each other."""
    from core.examples import Columns, DataSource
    from core.recovery import Request

    k, preset = PRESETS[options["preset"]]
    try:
        return Request(
            model=options["model"],
            revision=options["revision"],
            source=DataSource(options["data"], options["config"], options["split"], limit=options["limit"]),
            columns=Columns(
                **{role: options[role] for role in ("text", "prompt", "response", "messages", "input")}
            ),
            recipe=Recipe(
                pooling=options["pooling"] or preset.pooling,
                blocks=options["blocks"] or preset.blocks,
                block_scale=options["block_scale"],
                max_tokens=options["max_tokens"],
                template=options["template"] or preset.template,
                dtype=options["dtype"],
            ),
            k=k if options["k"] is None else options["k"],
            seed=options["seed"],
            device=options["device"],
            store_dtype=options["store_dtype"],
            with_map=not options["no_map"],
            token_budget=options["token_budget"],
        )
    except BasiscopeError as error:
        raise click.UsageError(str(error)) from error
