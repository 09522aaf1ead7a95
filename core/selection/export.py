"""A kept selection in the formats that trainers read, with its manifest, ledger, card and a training config."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from core.chats import REASONING, Conversation, Message, function_of, json_arguments, thought, tool_calls
from core.errors import BasiscopeError
from core.examples import RESERVED, conversation_of, field_value
from core.selection import FORMATS, TUNINGS, plots
from core.selection.card import PLOTS, card
from core.selection.choose import choose
from core.selection.measures import MOST_MEASURED, composition, counted, curve
from core.selection.pool import Constraints, Pool, Rule, pool_of
from core.selection.step import Request
from core.store import described, new_folder, read_json, write_json
from core.workspace import KeptSelection, Run

LEARNING_RATE, EPOCHS, SCHEDULER = 5e-5, 1, "cosine"
"""As published for the selected sets (method.md section 7)."""
MAX_LENGTH, BATCH = 8_192, 16
LORA_RANK = 16
MOST_VALUES = 200
FILE, PARQUET = "selection.jsonl", "selection.parquet"
CONFIGS = frozenset(("llamafactory.yaml", "trl.yaml", "axolotl.yaml"))
WRITTEN = CONFIGS | {
    FILE,
    PARQUET,
    "manifest.json",
    "ledger.csv",
    "dataset_info.json",
    "README.md",
    *PLOTS,
}
"""Every name that an export may hold; a folder with any other is never replaced."""
SHAREGPT = {"user": "human", "assistant": "gpt", "tool": "observation"}
TAKE_CHOICES = ("trl", "messages")
"""Formats that have a column of arguments of the chat template."""
LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}
"""Characters that JSON allows in a text and that some readers of lines take for the end of one."""
PASSED_OVER = (
    "of the conversations do not take turns between user and assistant. LLaMA-Factory would pass over these "
    "without an error, so its files are left out; TRL trains on all."
)
MORE_THAN_TEXT = (
    "of the conversations have tool calls or reasoning, which LLaMA-Factory does not read as they are in this "
    "format; its files are left out. Use sharegpt for it; TRL and Axolotl give them to the chat template."
)
NO_PLACE = "of the examples have keys in their messages that this format has no place for: "
NO_CHOICES = "of the examples have chat_template_kwargs, which this format has no place for."


def export(
    kept: KeptSelection,
    run: Run,
    out: Path,
    form: str,
    tuning: str = "full",
    model: str | None = None,
    replace_old: bool = False,
) -> list[str]:
    """Write a selection into the folder `out`; returns the names of its files. The rows are in the order of the
    selection, so that the first N of them are its budget N where the rule is nested.

    Raises BasiscopeError as `check_export` does, and where an example cannot be written in the format; then
    nothing is written.
    """
    check_export(run, form, tuning, out, replace_old)
    out = out.resolve()
    told: Counter[str] = Counter()
    with new_folder(out, replace=True) as temporary:
        has_tools = _write_rows(rows_of(kept, run, form, told), temporary, form)
        shutil.copyfile(kept.file("ledger.csv"), temporary / "ledger.csv")
        made = configs(kept, run, form, tuning, model)
        if told[PASSED_OVER] or told[MORE_THAN_TEXT]:
            del made["llamafactory.yaml"]
        elif form in ("alpaca", "sharegpt", "messages"):
            info = {dataset_name(kept): dataset_info(form, has_tools)}
            write_json(temporary / "dataset_info.json", info, sealed=False)
        for name, config in made.items():
            (temporary / name).write_text(config, encoding="utf-8")
        _write_card(kept, run, temporary, form, told)
        files = {path.name: described(path) for path in sorted(temporary.iterdir())}
        write_json(temporary / "manifest.json", kept.manifest | {"format": form, "files": files})
    return sorted(path.name for path in out.iterdir())


def _write_rows(rows: Iterator[dict[str, Any]], folder: Path, form: str) -> bool:
    """Writes the file of rows; whether any has tools."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), folder / PARQUET, write_page_checksum=True)
        return False
    has_tools = False
    with (folder / FILE).open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False).translate(LINE_ENDS) + "\n")
            has_tools |= form != "rows" and bool(row.get("tools"))
    return has_tools


def check_export(run: Run, form: str, tuning: str, out: Path | None, replace_old: bool = False) -> None:
    """Raises BasiscopeError for an unknown format or tuning, for a format that the run's data cannot be written
    in, and for a folder that has something in it already; with `replace_old`, for one that has anything else than
    an export in it."""
    for title, chosen, known in (("Format", form, FORMATS), ("Tuning", tuning, TUNINGS)):
        if chosen not in known:
            raise BasiscopeError(f"{title} {chosen!r} is not one of {', '.join(known)}.")
    if form not in ("trl", "rows", "parquet") and not {"messages", "response"} & set(
        run.manifest["data"]["columns"]
    ):
        raise BasiscopeError(
            f"Format {form}: the examples of run {run.id} have no response. Use --format rows, or trl, which then "
            "writes plain texts."
        )
    if out is None or not out.exists():
        return
    if Path.cwd().is_relative_to(out.resolve()):
        raise BasiscopeError(f"Export: {out} is the folder you are in; choose another --out.")
    inside = {path.name for path in out.iterdir()} if out.is_dir() else {out.name}
    if inside and not replace_old:
        raise BasiscopeError(f"Export: {out} has something in it already; choose another --out, or --replace it.")
    if inside and not _is_export(out, inside):
        raise BasiscopeError(f"Export: {out} holds something else than an export; it is not replaced.")


def _is_export(out: Path, inside: set[str]) -> bool:
    if not {"manifest.json"} <= inside <= WRITTEN:
        return False
    manifest = read_json(out / "manifest.json")
    return isinstance(manifest, dict) and "selection_version" in manifest


def rows_of(
    kept: KeptSelection, run: Run, form: str, told: Counter[str] | None = None
) -> Iterator[dict[str, Any]]:
    """The chosen examples, in order, in a format; what it cannot hold is counted in `told`. Raises BasiscopeError
    where an example cannot be written in it."""
    data, template = run.manifest["data"], run.manifest["recipe"]["template"]
    nested = set(data.get("json_columns", ()))
    for record in run.records(kept.example_ids):
        if form == "parquet":
            yield record_for_parquet(record)
            continue
        original = original_row(record, nested)
        if form == "rows":
            yield original
            continue
        yield formatted(record, original, data["columns"], form, template)
        chat = conversation(record, original, data["columns"])
        if told is not None and chat is not None:
            told.update(_unread(chat, form))


def _unread(chat: Conversation, form: str) -> Iterator[str]:
    """What the readers of a format do not read of a conversation."""
    if form == "messages":
        if any(message.get("tool_calls") or thought(message) for message in chat.messages):
            yield MORE_THAN_TEXT
        elif not takes_turns(_turns(chat.messages), ("user", "tool")):
            yield PASSED_OVER
    if form in ("alpaca", "sharegpt"):
        written = {"role", "content", "tool_calls", *REASONING}
        if missing := sorted({key for message in chat.messages for key in message} - written):
            yield NO_PLACE + ", ".join(missing) + "."
    if chat.choices and form not in TAKE_CHOICES:
        yield NO_CHOICES


def original_row(record: Mapping[str, Any], nested: set[str]) -> dict[str, Any]:
    """A row as the source had it: nested values parsed again, names given back."""
    row = {}
    for name, value in record.items():
        if name in RESERVED:
            continue
        value = None if not isinstance(value, str) and pd.isna(value) else value
        value = json.loads(value) if name in nested and value is not None else value
        row[_given_back(str(name))] = value
    return row


def record_for_parquet(record: Mapping[str, Any]) -> dict[str, Any]:
    """As `original_row`, nested values as JSON text: a column has one type."""
    return {_given_back(str(name)): value for name, value in record.items() if name not in RESERVED}


def _given_back(name: str) -> str:
    bare = name
    while bare.startswith("data_"):
        bare = bare.removeprefix("data_")
    return name.removeprefix("data_") if bare in RESERVED else name


def formatted(
    record: Mapping[str, Any],
    original: Mapping[str, Any],
    columns: Mapping[str, str],
    form: str,
    template: str = "plain",
) -> dict[str, Any]:
    """An example in a format; `template` is the one it was read with. Raises BasiscopeError where the format has
    no place for what its messages say."""
    chat = conversation(record, original, columns)
    if chat is None:
        if form == "trl":
            return {"text": record["text"]}
        raise _refused(form, record, "has no response", "--format rows, or trl, which then writes plain texts")
    beside = _beside(chat, form)
    if form == "trl" and "messages" not in columns:
        if template == "plain" and conversation_of(original, columns) is None:
            return {"prompt": chat.messages[0]["content"] + "\n", "completion": chat.messages[1]["content"]}
        return {"prompt": list(chat.before), "completion": list(chat.response), **beside}
    if form in ("trl", "messages", "axolotl"):
        return {"messages": list(chat.messages), **beside}
    system, turns = _system(chat.messages), _turns(chat.messages)
    for message in turns:
        if tool_calls(message) and (form == "alpaca" or message["content"]):
            what = "has tool calls" if form == "alpaca" else "has text beside a tool call"
            raise _refused(form, record, what, "--format messages")
    if not takes_turns(turns, ("user", "tool") if form == "sharegpt" else ("user",)):
        raise _refused(form, record, "does not take turns between user and assistant", "--format messages")
    if form == "sharegpt":
        return {"conversations": [_sharegpt(m) for m in turns], "system": system, **beside}
    row = _alpaca(turns, system) | beside
    if "input" in columns and conversation_of(original, columns) is None:
        about = field_value(original, columns["input"])
        row["instruction"] = str(field_value(original, columns["prompt"]))
        row["input"] = "" if about is None else str(about)
    return row


def _refused(form: str, record: Mapping[str, Any], what: str, remedy: str) -> BasiscopeError:
    return BasiscopeError(f"Format {form}: example {record['example_id']} {what}. Use {remedy}.")


def conversation(
    record: Mapping[str, Any], original: Mapping[str, Any], columns: Mapping[str, str]
) -> Conversation | None:
    """An example as chat messages; None where it has no response."""
    if (chat := conversation_of(original, columns)) is not None:
        return chat
    if "response" not in columns:
        return None
    pairs = (("user", record["prompt"]), ("assistant", record["response"]))
    return Conversation(tuple({"role": role, "content": content} for role, content in pairs), 1)


def _beside(chat: Conversation, form: str) -> dict[str, Any]:
    """What stands beside the messages: LLaMA-Factory reads tools as JSON alone, TRL and Axolotl either."""
    beside: dict[str, Any] = {}
    if chat.tools:
        beside["tools"] = chat.tools if form in ("trl", "axolotl") else json.dumps(chat.tools, ensure_ascii=False)
    if chat.choices and form in TAKE_CHOICES:
        beside["chat_template_kwargs"] = dict(chat.choices)
    return beside


def _system(messages: Sequence[Message]) -> str:
    return str(messages[0]["content"]) if messages[0]["role"] == "system" else ""


def _turns(messages: Sequence[Message]) -> list[Message]:
    return list(messages[1:] if messages[0]["role"] == "system" else messages)


def takes_turns(turns: list[Message], asking: tuple[str, ...]) -> bool:
    """Whether one of the roles `asking` and the assistant alternate to the end: LLaMA-Factory passes over any
    other conversation, with no more than a warning."""
    fine = all(m["role"] in (asking if i % 2 == 0 else ("assistant",)) for i, m in enumerate(turns))
    return len(turns) >= 2 and len(turns) % 2 == 0 and fine


def _sharegpt(message: Message) -> dict[str, Any]:
    """A turn as LLaMA-Factory reads it: reasoning in a think block, calls as the JSON of names and arguments."""
    if not (calls := tool_calls(message)):
        return {"from": SHAREGPT.get(message["role"], message["role"]), "value": _spoken(message)}
    functions = [json_arguments(function_of(call)) for call in calls]
    told = [{"name": one.get("name"), "arguments": one.get("arguments")} for one in functions]
    written = json.dumps(told[0] if len(told) == 1 else told, ensure_ascii=False)
    return {"from": "function_call", "value": thought(message) + written}


def _spoken(message: Message) -> str:
    return thought(message) + (message["content"] or "")


def _alpaca(turns: list[Message], system: str) -> dict[str, Any]:
    history = [[_spoken(a), _spoken(b)] for a, b in zip(turns[:-2:2], turns[1:-2:2], strict=True)]
    row = {"instruction": _spoken(turns[-2]), "input": "", "output": _spoken(turns[-1])}
    return row | {"system": system, "history": history}


# --- what reads it --------------------------------------------------------------------------------------


def dataset_name(kept: KeptSelection) -> str:
    return f"basiscope_{kept.name}".replace(" ", "_")


def trained(kept: KeptSelection) -> str:
    """Where the configs put the trained model: beside the export, which may be replaced."""
    return f"../{dataset_name(kept)}_trained"


def dataset_info(form: str, has_tools: bool = False) -> dict[str, Any]:
    """The entry of LLaMA-Factory's dataset_info.json (its data/README.md)."""
    tools = {"tools": "tools"} if has_tools else {}
    if form == "alpaca":
        columns = {"prompt": "instruction", "query": "input", "response": "output"}
        columns |= {"system": "system", "history": "history"}
        return {"file_name": FILE, "formatting": "alpaca", "columns": columns | tools}
    if form == "sharegpt":
        tags = {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"}
        tags |= {"observation_tag": "observation", "function_tag": "function_call"}
        columns = {"messages": "conversations", "system": "system"} | tools
        return {"file_name": FILE, "formatting": "sharegpt", "columns": columns, "tags": tags}
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    tags |= {"observation_tag": "tool", "system_tag": "system"}
    columns = {"messages": "messages"} | tools
    return {"file_name": FILE, "formatting": "sharegpt", "columns": columns, "tags": tags}


def configs(kept: KeptSelection, run: Run, form: str, tuning: str, model: str | None) -> dict[str, str]:
    """File name -> training config, for the trainers that read the format."""
    name = model or run.manifest["model"]["name"]
    made = {}
    context = None if model else run.manifest["model"].get("context")
    longest = min(MAX_LENGTH, context or MAX_LENGTH)
    if form in ("alpaca", "sharegpt", "messages"):
        made["llamafactory.yaml"] = yaml(llamafactory_config(kept, name, tuning, longest))
    if form in ("trl", "messages"):
        made["trl.yaml"] = yaml(trl_config(kept, name, tuning, longest))
    if form == "axolotl":
        made["axolotl.yaml"] = yaml(axolotl_config(kept, name, tuning, longest))
    return made


def training(kept: KeptSelection) -> dict[str, Any]:
    """What LLaMA-Factory and TRL, which both take transformers' arguments, are told alike."""
    return {
        "output_dir": trained(kept),
        "learning_rate": LEARNING_RATE,
        "num_train_epochs": EPOCHS,
        "lr_scheduler_type": SCHEDULER,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": BATCH,
        "seed": kept.manifest["seed"],
    }


def llamafactory_config(kept: KeptSelection, model: str, tuning: str, longest: int) -> dict[str, Any]:
    """For `llamafactory-cli train llamafactory.yaml` in the export's folder."""
    lora = {"lora_rank": LORA_RANK, "lora_target": "all"} if tuning == "lora" else {}
    return {
        "model_name_or_path": model,
        "stage": "sft",
        "do_train": True,
        "finetuning_type": tuning,
        **lora,
        "dataset_dir": ".",
        "dataset": dataset_name(kept),
        "max_samples": len(kept.example_ids),
        "template": "default",
        "cutoff_len": longest,
        **training(kept),
        "bf16": True,
    }


def trl_config(kept: KeptSelection, model: str, tuning: str, longest: int) -> dict[str, Any]:
    """For `trl sft --config trl.yaml` in the export's folder."""
    lora = {"use_peft": True, "lora_r": LORA_RANK, "lora_target_modules": "all-linear"} if tuning == "lora" else {}
    return {
        "model_name_or_path": model,
        **lora,
        "datasets": [{"path": "json", "data_files": FILE, "split": "train"}],
        **training(kept),
        "max_length": longest,
    }


def axolotl_config(kept: KeptSelection, model: str, tuning: str, longest: int) -> dict[str, Any]:
    """For `axolotl train axolotl.yaml` in the export's folder."""
    lora = {"adapter": "lora", "lora_r": LORA_RANK, "lora_alpha": 2 * LORA_RANK, "lora_target_linear": True}
    return {
        "base_model": model,
        **(lora if tuning == "lora" else {}),
        "datasets": [
            {"path": FILE, "ds_type": "json", "type": "chat_template", "field_messages": "messages"},
        ],
        "sequence_len": longest,
        "output_dir": trained(kept),
        "learning_rate": LEARNING_RATE,
        "num_epochs": EPOCHS,
        "lr_scheduler": SCHEDULER,
        "micro_batch_size": 1,
        "gradient_accumulation_steps": BATCH,
        "bf16": "auto",
    }


def yaml(config: Mapping[str, Any]) -> str:
    """YAML of a flat mapping: JSON values are valid YAML."""
    return "".join(f"{name}: {_yaml_value(value)}\n" for name, value in config.items())


def _yaml_value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:f}".rstrip("0")  # YAML 1.1 takes 5e-05 for a text
    return json.dumps(value, ensure_ascii=False)


def _write_card(kept: KeptSelection, run: Run, folder: Path, form: str, told: Mapping[str, int]) -> None:
    """told: what is not read of so many examples."""
    pool = pool_of(run)
    rows = pool.rows(tuple(kept.example_ids), "Selection")
    chance = choose(pool, Rule("random"), Constraints(budget=len(rows)), lambda: pool.whitened).rows
    curves = {name: curve(pool, own[:MOST_MEASURED]) for name, own in (("selection", rows), ("random", chance))}
    plots.write_plot(folder / "covering.svg", lambda axes: plots.draw_covering(axes, curves), 2)
    plots.write_plot(folder / "directions.svg", lambda axes: plots.draw_directions(axes, pool, rows), 2)
    column = telling_column(kept, pool)
    if column is not None:
        shares = composition(counted(pool.facts[column]), {"selection": rows, "random": chance})
        plots.write_plot(
            folder / "composition.svg", lambda axes: plots.draw_composition(axes, shares, str(column))
        )
    if (plane := run.map()) is not None and len(plane) == pool.n:
        points = plane[["x", "y"]].to_numpy()
        plots.write_plot(folder / "map.svg", lambda axes: plots.draw_map(axes, points, rows))
    file = PARQUET if form == "parquet" else FILE
    drawn = [name for name in PLOTS if (folder / name).exists()]
    text = card(kept, run, file, drawn)
    text += "".join(f"\n{count:,} {sentence}\n" for sentence, count in told.items() if count)
    (folder / "README.md").write_text(text, encoding="utf-8")


def telling_column(kept: KeptSelection, pool: Pool) -> str | None:
    """The column whose composition a card shows: that of the rule or a quota, the source, or else the first text
    column of two to two hundred values; None where there is none."""
    request = Request.from_dict(kept.manifest["request"])
    asked = [request.rule.column, *(quota.column for quota in request.constraints.quotas), request.origins.source]
    texts = [name for name in pool.facts if not pd.api.types.is_numeric_dtype(pool.facts[name])]
    for name in [*(name for name in asked if name), *texts]:
        if name in pool.facts and 2 <= pool.facts[name].nunique() <= MOST_VALUES:
            return str(name)
    return None
