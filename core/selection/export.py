"""A kept selection in the formats that trainers read, with its manifest, ledger, card and a training config."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from core.errors import BasiscopeError
from core.examples import RESERVED, as_messages, field_value
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
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_export(run, form, tuning, out, replace_old)
    out = out.resolve()
    rows, skipped = rows_of(kept, run, form), 0
    with new_folder(out, replace=True) as temporary:
        if form == "parquet":
            pq.write_table(pa.Table.from_pylist(list(rows)), temporary / PARQUET, write_page_checksum=True)
        else:
            with (temporary / FILE).open("w", encoding="utf-8") as file:
                for row in rows:
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    skipped += form == "messages" and not takes_turns(_turns(row["messages"]), ("user", "tool"))
        shutil.copyfile(kept.file("ledger.csv"), temporary / "ledger.csv")
        made = configs(kept, run, form, tuning, model)
        if form in ("alpaca", "sharegpt", "messages"):
            write_json(temporary / "dataset_info.json", {dataset_name(kept): dataset_info(form)}, sealed=False)
        if skipped:
            (temporary / "dataset_info.json").unlink()
            del made["llamafactory.yaml"]
        for name, config in made.items():
            (temporary / name).write_text(config, encoding="utf-8")
        _write_card(kept, run, temporary, form, skipped)
        files = {path.name: described(path) for path in sorted(temporary.iterdir())}
        write_json(temporary / "manifest.json", kept.manifest | {"format": form, "files": files})
    return sorted(path.name for path in out.iterdir())


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


def rows_of(kept: KeptSelection, run: Run, form: str) -> Iterator[dict[str, Any]]:
    """The chosen examples, in order, in a format. Raises BasiscopeError where one cannot be written in it."""
    data = run.manifest["data"]
    nested = set(data.get("json_columns", ()))
    for record in run.records(kept.example_ids):
        if form == "parquet":
            yield record_for_parquet(record)
        else:
            original = original_row(record, nested)
            yield original if form == "rows" else formatted(record, original, data["columns"], form)


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
    record: Mapping[str, Any], original: Mapping[str, Any], columns: Mapping[str, str], form: str
) -> dict[str, Any]:
    messages = conversation(record, original, columns)
    if messages is None:
        if form == "trl":
            return {"text": record["text"]}
        raise BasiscopeError(
            f"Format {form}: example {record['example_id']} has no response. Use --format rows, or trl, "
            "which then writes plain texts."
        )
    if form == "trl" and "messages" not in columns:
        return {"prompt": messages[0]["content"] + "\n", "completion": messages[1]["content"]}
    if form in ("trl", "messages", "axolotl"):
        return {"messages": messages}
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    turns = _turns(messages)
    if not takes_turns(turns, ("user", "tool") if form == "sharegpt" else ("user",)):
        raise BasiscopeError(
            f"Format {form}: example {record['example_id']} does not take turns between user and assistant; use "
            "messages."
        )
    if form == "sharegpt":
        told = [{"from": SHAREGPT.get(m["role"], m["role"]), "value": m["content"]} for m in turns]
        return {"conversations": told, "system": system}
    return _alpaca(turns, system)


def conversation(
    record: Mapping[str, Any], original: Mapping[str, Any], columns: Mapping[str, str]
) -> list[dict[str, str]] | None:
    """An example as chat messages; None where it has no response."""
    if "messages" in columns:
        return as_messages(field_value(original, columns["messages"]))
    if "response" not in columns:
        return None
    pairs = (("user", record["prompt"]), ("assistant", record["response"]))
    return [{"role": role, "content": content} for role, content in pairs]


def _turns(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    return messages[1:] if messages[0]["role"] == "system" else messages


def takes_turns(turns: list[dict[str, str]], asking: tuple[str, ...]) -> bool:
    """Whether one of the roles `asking` and the assistant alternate to the end: LLaMA-Factory passes over any
    other conversation, with no more than a warning."""
    fine = all(m["role"] in (asking if i % 2 == 0 else ("assistant",)) for i, m in enumerate(turns))
    return len(turns) >= 2 and len(turns) % 2 == 0 and fine


def _alpaca(turns: list[dict[str, str]], system: str) -> dict[str, Any]:
    history = [[a["content"], b["content"]] for a, b in zip(turns[:-2:2], turns[1:-2:2], strict=True)]
    row = {"instruction": turns[-2]["content"], "input": "", "output": turns[-1]["content"]}
    return row | {"system": system, "history": history}


# --- what reads it --------------------------------------------------------------------------------------


def dataset_name(kept: KeptSelection) -> str:
    return f"basiscope_{kept.name}".replace(" ", "_")


def trained(kept: KeptSelection) -> str:
    """Where the configs put the trained model: beside the export, which may be replaced."""
    return f"../{dataset_name(kept)}_trained"


def dataset_info(form: str) -> dict[str, Any]:
    """The entry of LLaMA-Factory's dataset_info.json (its data/README.md)."""
    if form == "alpaca":
        columns = {"prompt": "instruction", "query": "input", "response": "output"}
        columns |= {"system": "system", "history": "history"}
        return {"file_name": FILE, "formatting": "alpaca", "columns": columns}
    if form == "sharegpt":
        tags = {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"}
        tags["observation_tag"] = "observation"
        columns = {"messages": "conversations", "system": "system"}
        return {"file_name": FILE, "formatting": "sharegpt", "columns": columns, "tags": tags}
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    tags |= {"observation_tag": "tool", "system_tag": "system"}
    return {"file_name": FILE, "formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags}


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


def _write_card(kept: KeptSelection, run: Run, folder: Path, form: str, skipped: int) -> None:
    """skipped: conversations that LLaMA-Factory would pass over."""
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
    if skipped:
        text += (
            f"\n{skipped:,} of the conversations do not take turns between user and assistant. LLaMA-Factory "
            "would pass over these without an error, so its files are left out; TRL trains on all.\n"
        )
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
