import importlib
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from places import DATA
from synthetic import synthetic_run

from core.cli import main
from core.errors import BasiscopeError
from core.evaluation import Interval
from core.selection import FORMATS
from core.selection.card import PLOTS, _code, card
from core.selection.export import EPOCHS, LEARNING_RATE, configs, export, formatted
from core.selection.pool import Constraints, Quota, Rule
from core.selection.step import Request, reproduce, screen_run, select, stored_sentences
from core.selection.vectors import text_model_fingerprint
from core.store import read_json, write_json
from core.usefulness.evidence import BOTH, Cost, Effect, Evidence, Measure
from core.workspace import Workspace


@pytest.fixture
def kept(gsm8k_copy):
    """A selection of 20 real examples."""
    request = Request(gsm8k_copy.run().id, Rule("coverage"), Constraints(budget=20))
    return select(request, gsm8k_copy, "twenty")


@pytest.fixture
def run(gsm8k_copy):
    return gsm8k_copy.run()


def source_rows():
    return [json.loads(line) for line in (DATA / "gsm8k" / "train.jsonl").read_text().splitlines()]


# --- what consumers read --------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_datasets_loads_every_format_in_selection_order(kept, run, tmp_path, form):
    from datasets import load_dataset

    export(kept, run, tmp_path / "out", form)
    loaded = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == 20
    rows = source_rows()
    for example_id, row in zip(kept.example_ids, loaded, strict=True):
        question, answer = rows[example_id]["question"], rows[example_id]["answer"]
        told = {
            "trl": lambda r: (r["prompt"].rstrip("\n"), r["completion"]),
            "messages": lambda r: tuple(m["content"] for m in r["messages"]),
            "axolotl": lambda r: tuple(m["content"] for m in r["messages"]),
            "alpaca": lambda r: (r["instruction"], r["output"]),
            "sharegpt": lambda r: tuple(m["value"] for m in r["conversations"]),
            "rows": lambda r: (r["question"], r["answer"]),
            "parquet": lambda r: (r["question"], r["answer"]),
        }[form](row)
        assert told[0].strip() == question.strip() and told[1] == answer


def test_trl_trains_on_it_with_the_config(kept, run, stories, tmp_path):
    from datasets import load_dataset
    from trl import ModelConfig, ScriptArguments, SFTConfig, SFTTrainer, TrlParser
    from trl.scripts.utils import DatasetMixtureConfig

    export(kept, run, tmp_path / "out", "trl", model=stories)
    parser = TrlParser((ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig))
    overrides = ["--max_steps", "3", "--use_cpu", "true", "--bf16", "false", "--report_to", "none"]
    overrides += ["--output_dir", str(tmp_path / "trained"), "--max_length", "128"]
    _, training, model, mixture = parser.parse_args_and_config(
        ["--config", str(tmp_path / "out" / "trl.yaml"), *overrides]
    )
    assert training.learning_rate == LEARNING_RATE and training.num_train_epochs == EPOCHS
    assert training.lr_scheduler_type == "cosine" and model.model_name_or_path == stories
    (data,) = mixture.datasets
    loaded = load_dataset(
        data.path,
        data_files=str(tmp_path / "out" / data.data_files),
        split=data.split,
        cache_dir=str(tmp_path / "cache"),
    )
    result = SFTTrainer(model.model_name_or_path, args=training, train_dataset=loaded).train()
    assert result.global_step == 3 and result.training_loss > 0


def test_the_lora_config_is_one_that_trl_reads(kept, run, tmp_path):
    from trl import ModelConfig, ScriptArguments, SFTConfig, TrlParser
    from trl.scripts.utils import DatasetMixtureConfig

    export(kept, run, tmp_path / "out", "trl", tuning="lora")
    parser = TrlParser((ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig))
    arguments = ["--config", str(tmp_path / "out" / "trl.yaml"), "--use_cpu", "true", "--bf16", "false"]
    assert parser.parse_args_and_config(arguments)[2].use_peft


@pytest.fixture(scope="module")
def factory():
    """LLaMA-Factory's own code that reads dataset_info.json and its rows: (parser, converter). Its package is
    imported without its `data/__init__`, which asks for audio and video libraries."""
    package = pytest.importorskip("llamafactory", reason="LLaMA-Factory is not installed: make test installs it")
    data = ModuleType("llamafactory.data")
    data.__path__ = [str(Path(package.__file__).parent / "data")]
    sys.modules["llamafactory.data"] = data
    return tuple(importlib.import_module(f"llamafactory.data.{name}") for name in ("parser", "converter"))


def as_llama_factory_reads(factory, folder):
    """(prompt, response, system) of every row, by its own parser and converter."""
    import yaml

    parser, converter = factory
    config = yaml.safe_load((folder / "llamafactory.yaml").read_text())
    (attributes,) = parser.get_dataset_list([config["dataset"]], str(folder))
    read = converter.get_dataset_converter(attributes.formatting, attributes, None)
    rows = [json.loads(line) for line in (folder / attributes.dataset_name).open(encoding="utf-8")]
    told = [read(row) for row in rows]
    return [
        ([m["content"] for m in one["_prompt"]], [m["content"] for m in one["_response"]], one["_system"])
        for one in told
    ]


@pytest.mark.parametrize("form", ["alpaca", "sharegpt", "messages"])
def test_llama_factory_reads_every_row(kept, run, factory, tmp_path, form):
    export(kept, run, tmp_path / "out", form)
    rows = source_rows()
    for example_id, (prompt, response, system) in zip(
        kept.example_ids, as_llama_factory_reads(factory, tmp_path / "out"), strict=True
    ):
        assert prompt == [rows[example_id]["question"]] and response == [rows[example_id]["answer"]]
        assert not system


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("form", ["alpaca", "sharegpt", "messages"])
def test_every_key_of_the_config_is_one_of_llama_factory(kept, run, tmp_path, form, tuning):
    import ast

    import yaml

    spec = importlib.util.find_spec("llamafactory")
    if spec is None:
        pytest.skip("LLaMA-Factory is not installed: make test installs it")
    from transformers import TrainingArguments

    export(kept, run, tmp_path / "out", form, tuning)
    config = yaml.safe_load((tmp_path / "out" / "llamafactory.yaml").read_text())
    known = set(TrainingArguments.__dataclass_fields__)
    for path in (Path(spec.origin).parent / "hparams").glob("*_args.py"):
        nodes = ast.walk(ast.parse(path.read_text()))
        fields = (node.target for node in nodes if isinstance(node, ast.AnnAssign))
        known |= {field.id for field in fields if isinstance(field, ast.Name)}
    assert {"cutoff_len", "lora_target", "finetuning_type"} <= known and set(config) <= known
    assert config["learning_rate"] == LEARNING_RATE and config["lr_scheduler_type"] == "cosine"
    assert config["max_samples"] == 20


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_axolotl_takes_its_config(kept, run, tmp_path, tuning):
    import yaml

    schema = pytest.importorskip("axolotl.utils.schemas.config", reason="Axolotl is not installed")
    from axolotl.utils.schemas.datasets import SFTDataset

    export(kept, run, tmp_path / "out", "axolotl", tuning)
    config = yaml.safe_load((tmp_path / "out" / "axolotl.yaml").read_text())
    assert set(config) <= set(schema.AxolotlInputConfig.model_fields)
    taken = schema.AxolotlInputConfig(**config)
    assert taken.learning_rate == LEARNING_RATE and taken.num_epochs == EPOCHS and taken.lr_scheduler == "cosine"
    assert (taken.adapter == "lora") == (tuning == "lora")
    (data,) = taken.datasets
    assert isinstance(data, SFTDataset) and data.field_messages == "messages"
    row = json.loads((tmp_path / "out" / data.path).read_text().splitlines()[0])
    assert [m["role"] for m in row["messages"]] == ["user", "assistant"]


def test_chat_messages_come_back_as_they_were(chat_stories, write_rows, factory, tmp_path):
    from core.activations import Recipe
    from core.examples import Columns, DataSource
    from core.recovery import Request as Recovery
    from core.recovery import recover

    told = [
        [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": f"What is {i} and one? <b>"},
            {"role": "assistant", "content": f"{i + 1}"},
            {"role": "tool", "content": "right"},
            {"role": "assistant", "content": "So it is."},
        ]
        for i in range(12)
    ]
    path = write_rows([{"messages": messages} for messages in told])
    space = Workspace(tmp_path / "chat")
    recipe = Recipe(dtype="float32")
    run = recover(
        Recovery(
            chat_stories, DataSource(path), Columns(messages="messages"), recipe, k=2, device="cpu", with_map=False
        ),
        space,
    )
    kept = select(Request(run.id, Rule("order"), Constraints(budget=12)), space, "all")
    export(kept, run, tmp_path / "m", "messages")
    rows = [json.loads(line) for line in (tmp_path / "m" / "selection.jsonl").read_text().splitlines()]
    assert [row["messages"] for row in rows] == told
    export(kept, run, tmp_path / "r", "rows")
    rows = [json.loads(line) for line in (tmp_path / "r" / "selection.jsonl").read_text().splitlines()]
    assert rows == [{"messages": messages} for messages in told]
    export(kept, run, tmp_path / "s", "sharegpt")
    with pytest.raises(BasiscopeError, match="take turns"):
        export(kept, run, tmp_path / "a", "alpaca")
    for name in "ms":
        for read, messages in zip(as_llama_factory_reads(factory, tmp_path / name), told, strict=True):
            system, *turns, last = [m["content"] for m in messages]
            assert read == (turns, [last], system)
    first = json.loads((tmp_path / "s" / "selection.jsonl").read_text().splitlines()[0])
    assert first["system"] == "Be short." and first["conversations"][1] == {"from": "gpt", "value": "1"}


def test_messages_that_llama_factory_would_pass_over_come_without_its_files(chat_stories, write_rows, tmp_path):
    from core.activations import Recipe
    from core.examples import Columns, DataSource
    from core.recovery import Request as Recovery
    from core.recovery import recover

    told = [
        [{"role": "user", "content": f"What is {i}?"}, {"role": "assistant", "content": "It."}] for i in range(9)
    ]
    told[4].append({"role": "user", "content": "And then?"})
    space, columns = Workspace(tmp_path / "chat"), Columns(messages="messages")
    source = DataSource(write_rows([{"messages": messages} for messages in told]))
    asked = Recovery(chat_stories, source, columns, Recipe(dtype="float32"), k=2, device="cpu", with_map=False)
    run = recover(asked, space)
    for budget, factory_files in ((4, True), (9, False)):
        kept = select(Request(run.id, Rule("order"), Constraints(budget=budget)), space, f"first {budget}")
        out = tmp_path / str(budget)
        files = export(kept, run, out, "messages")
        assert ("dataset_info.json" in files) == ("llamafactory.yaml" in files) == factory_files
        assert ("1 of the conversations do not take turns" in (out / "README.md").read_text()) != factory_files
        assert len((out / "selection.jsonl").read_text().splitlines()) == budget and "trl.yaml" in files


@pytest.mark.parametrize("form", ["alpaca", "sharegpt"])
def test_an_empty_system_message_is_no_turn(form):
    messages = [
        {"role": role, "content": text} for role, text in (("system", ""), ("user", "1?"), ("assistant", "1"))
    ]
    row = formatted({"example_id": 0}, {"chat": messages}, {"messages": "chat"}, form)
    assert row["system"] == "" and "1?" in json.dumps(row)


def test_alpaca_keeps_the_turns_before_the_last():
    texts = ("Be short.", "One?", "1", "Two?", "2")
    roles = ("system", *("user", "assistant") * 2)
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    row = formatted({"example_id": 0}, {"chat": messages}, {"messages": "chat"}, "alpaca")
    assert (row["system"], row["history"]) == ("Be short.", [["One?", "1"]])
    assert (row["instruction"], row["output"]) == ("Two?", "2")


def test_whole_numbers_stay_whole_beside_missing_ones(tmp_path):
    space = Workspace(tmp_path / "ws")
    level = [None if i % 3 == 0 else 2**53 + i for i in range(30)]
    run = synthetic_run(space, n=30, columns={"level": level[1:2] + level[1:], "hard": [None, True] * 15})
    kept = select(Request(run.id, Rule("order"), Constraints(budget=9)), space, "nine")
    for form in ("rows", "parquet"):
        export(kept, run, tmp_path / form, form)
    rows = [json.loads(line) for line in (tmp_path / "rows" / "selection.jsonl").read_text().splitlines()]
    assert [row["level"] for row in rows] == (level[1:2] + level[1:])[:9]
    assert [type(row["level"]) for row in rows[:4]] == [int, int, int, type(None)]
    assert pq.read_table(tmp_path / "parquet" / "selection.parquet").to_pylist() == rows


# --- again ----------------------------------------------------------------------------------------------


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir()) if p.is_file()}


def test_the_manifest_makes_it_again_bit_for_bit(gsm8k_copy, run_cli, data_folder, tmp_path):
    held = data_folder / "gsm8k" / "test.jsonl"
    options = ("--along", "1+,3-", "--weights", "2,1", "--budget", 15, "--dedup", "near", "--against", held)
    options += ("--must", "7:a good one", "--never", 3, "--seed", 5)
    common = ("--workspace", gsm8k_copy.root, "--format", "trl")
    first, second = tmp_path / "a" / "same", tmp_path / "b" / "same"
    status, _, err = run_cli("select", "latest", *options, "--name", "same", "--out", first, *common)
    assert status == 0, err
    manifest = first / "manifest.json"
    shutil.rmtree(gsm8k_copy.root / "selections")
    shutil.rmtree(gsm8k_copy.root / "screenings")
    again = ("--from-manifest", manifest, "--name", "same", "--out", second)
    status, _, err = run_cli("select", *again, *common)
    assert status == 0, err
    assert contents(first) == contents(second)
    assert json.loads(manifest.read_text())["example_ids"][0] == 7


def test_a_manifest_of_other_data_is_refused(kept, gsm8k_copy):
    changed = json.loads(json.dumps(kept.manifest))
    changed["fingerprints"]["data"] = "else"
    with pytest.raises(BasiscopeError, match="other data"):
        reproduce(changed, gsm8k_copy, "again")
    for part in ("against", "data"):
        changed = json.loads(json.dumps(kept.manifest))
        del changed["fingerprints"][part]
        with pytest.raises(BasiscopeError, match="damaged"):
            reproduce(changed, gsm8k_copy, "again")
    changed = json.loads(json.dumps(kept.manifest))
    changed["example_ids"].reverse()
    with pytest.raises(BasiscopeError, match="Another selection came out"):
        reproduce(changed, gsm8k_copy, "again")


def test_a_manifest_and_other_options_contradict_each_other(kept, gsm8k_copy, run_cli):
    again = ("select", "--from-manifest", kept.folder / "manifest.json", "--workspace", gsm8k_copy.root)
    status, _, err = run_cli(*again, "--name", "x", "--budget", 5, "--along", "1+", "--seed", 0)
    assert status == 2 and "leave out --along, --budget, --seed" in err
    assert [one.name for one in gsm8k_copy.selections()] == ["twenty"]
    assert run_cli(*again, "--name", "x")[0] == 0


def test_the_utility_that_is_kept_with_a_run_splits_the_budget(gsm8k_copy, run, run_cli):
    effects = tuple(
        Effect(j, BOTH, "r", Interval(value, value - 0.05, value + 0.05, 50)) for j, value in ((1, 0.3), (2, -0.1))
    )
    measure = Measure("r", "correlation", "")
    kept = Evidence("utility", run.id, "r", (measure,), effects, (), {"column": "none"}, Cost(1.0, 0))
    gsm8k_copy.save_evidence(kept)
    weighted = ("select", run.id, "--budget", 20, "--workspace", gsm8k_copy.root, "--weights", "utility")
    assert run_cli(*weighted, "--along", "1+,2-", "--name", "own")[0] == 0
    assert gsm8k_copy.selection("own").manifest["rule"]["weights"] == pytest.approx([0.3, 0.1])
    plain = ("--weights", "0.3,0.1", "--along", "1+,2-", "--name", "plain")
    assert run_cli(*weighted[:-2], *plain)[0] == 0
    assert gsm8k_copy.selection("own").example_ids == gsm8k_copy.selection("plain").example_ids
    assert "utility +0.100 (+0.050 to +0.150, 50 traces)" in stored_sentences(run.id, (-2,), gsm8k_copy)[0]
    for along, status, sentence in (("1-,2+", 2, "none of these ends"), ("1+,3-", 2, "none for direction 3")):
        found = run_cli(*weighted, "--along", along)
        assert found[0] == status and sentence in found[2]


def test_the_manifest_has_scores_and_duplicates_in_full(gsm8k_copy, run, write_rows):
    repeated = [json.loads(row) for row in Path(run.manifest["data"]["path"]).read_text().splitlines()[:12]]
    held = write_rows([{"question": repeated[4]["question"]}])
    constraints = Constraints(budget=20, dedup="exact", against=(held,))
    manifest = select(Request(run.id, Rule("random"), constraints), gsm8k_copy, "all").manifest
    scores = run.scores().set_index("example_id").loc[manifest["example_ids"]]
    for name in ("d1", "d2", "d3"):
        assert manifest["scores"][name] == pytest.approx(scores[name].tolist(), rel=1e-5)
    assert manifest["duplicates"] == []
    assert 4 in [one["example_id"] for one in manifest["overlaps"]]
    path = gsm8k_copy.root / "selections" / "all" / "manifest.json"
    old = {("contamination" if name == "overlaps" else name): value for name, value in read_json(path).items()}
    write_json(path, old, sealed=False)
    assert gsm8k_copy.selection("all").manifest["overlaps"] == manifest["overlaps"], "as 0.1 wrote it"
    texts = [f"this is text {i % 7} of them" for i in range(20)]
    space = Workspace(gsm8k_copy.root.parent / "repeats")
    other = synthetic_run(space, n=20, texts=texts)
    manifest = select(
        Request(other.id, Rule("order"), Constraints(budget=5, dedup="exact")), space, "five"
    ).manifest
    found = {one["example_id"]: one["of"] for one in manifest["duplicates"]}
    assert found == {i: i % 7 for i in range(7, 20)}
    assert not any(one["chosen"] for one in manifest["duplicates"])
    assert manifest["dropped"] == {"exact duplicate of example N": 13}


def test_the_card_has_every_plot_and_all_that_was_found(gsm8k_copy, tmp_path):
    space = Workspace(tmp_path / "ws")
    kinds = ["<b>$x$</b>", "a | b", "plain"] * 20
    run = synthetic_run(space, columns={"kind": kinds})
    request = Request(run.id, Rule("coverage", trim=0.1), Constraints(budget=20, dedup="near"))
    out = tmp_path / "out"
    export(select(request, space, "mine"), run, out, "rows")
    card = (out / "README.md").read_text()
    for name in PLOTS:
        assert f"]({name})" in card and (out / name).read_text().count("<svg") == 1
    assert "&lt;b&gt;$x$&lt;/b&gt;" in (out / "composition.svg").read_text()
    assert "`outlier: among the 10.0% farthest from the mean` | 6" in card
    assert "0 examples of the pool repeat an earlier one" in card


def test_the_first_rows_are_the_smaller_budget(kept, gsm8k_copy, run, tmp_path):
    small = select(Request(run.id, Rule("coverage"), Constraints(budget=8)), gsm8k_copy, "eight")
    for one, name in ((kept, "twenty"), (small, "eight")):
        export(one, run, tmp_path / name, "rows")
    twenty, eight = ((tmp_path / n / "selection.jsonl").read_text().splitlines() for n in ("twenty", "eight"))
    assert twenty[:8] == eight


def test_a_card_promises_no_smaller_budget_where_shares_were_planned(tmp_path):
    space = Workspace(tmp_path)
    run = synthetic_run(space)
    for name, quotas in (("free", ()), ("shares", (Quota("kind", (("addition", 0.5),)),))):
        kept = select(Request(run.id, Rule("coverage"), Constraints(budget=20, quotas=quotas)), space, name)
        promised = "its first N rows are the selection for budget N" in card(kept, run, "data.jsonl", [])
        assert promised == kept.manifest["nested"] == (not quotas)


def test_held_out_files_are_found_from_another_folder(gsm8k_copy, run_cli, write_rows, tmp_path, monkeypatch):
    held = Path(write_rows([{"question": "one two"}]))
    monkeypatch.chdir(held.parent)
    common = ("--name", "same", "--workspace", gsm8k_copy.root.absolute())
    status, _, err = run_cli("select", "latest", "--coverage", "--budget", 5, "--against", held.name, *common)
    assert status == 0, err
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    manifest = gsm8k_copy.selection("same").folder / "manifest.json"
    status, _, err = run_cli("select", "--from-manifest", manifest.absolute(), *common, "--replace")
    assert status == 0, err


# --- bad input ------------------------------------------------------------------------------------------


def test_an_export_does_not_write_over_another_or_over_anything_else(kept, run, tmp_path):
    out = tmp_path / "out"
    export(kept, run, out, "rows")
    before = contents(out)
    with pytest.raises(BasiscopeError, match="has something in it"):
        export(kept, run, out, "trl")
    assert contents(out) == before
    export(kept, run, out, "trl", replace_old=True)
    assert (out / "trl.yaml").is_file()
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "thesis.txt").write_text("my only copy")
    with pytest.raises(BasiscopeError, match="something else"):
        export(kept, run, other, "trl", replace_old=True)
    assert (other / "thesis.txt").read_text() == "my only copy"


def test_only_an_export_is_replaced(kept, run, tmp_path, monkeypatch):
    for folder in (run.folder, kept.folder):
        before = contents(folder)
        with pytest.raises(BasiscopeError, match="something else"):
            export(kept, run, folder, "trl", replace_old=True)
        assert contents(folder) == before
    out = tmp_path / "out"
    export(kept, run, out, "trl")
    trained = out / "trained"
    trained.mkdir()
    with pytest.raises(BasiscopeError, match="something else"):
        export(kept, run, out, "trl", replace_old=True)
    assert trained.is_dir()
    monkeypatch.chdir(trained)
    with pytest.raises(BasiscopeError, match="you are in"):
        export(kept, run, Path(), "trl")


@pytest.mark.parametrize(("form", "name"), [("trl", "trl"), ("axolotl", "axolotl"), ("alpaca", "llamafactory")])
def test_models_are_trained_beside_the_export(kept, run, tmp_path, form, name):
    import yaml

    export(kept, run, tmp_path / "out", form)
    config = yaml.safe_load((tmp_path / "out" / f"{name}.yaml").read_text())
    trained = (tmp_path / "out" / config["output_dir"]).resolve()
    assert trained.parent == tmp_path and trained != tmp_path / "out"


def test_what_was_trained_in_a_selection_is_not_deleted_with_it(kept, gsm8k_copy, run, run_cli):
    command = ("select", run.id, "--coverage", "--budget", 5, "--name", "twenty", "--workspace", gsm8k_copy.root)
    assert run_cli(*command, "--format", "trl", "--replace")[0] == 0
    trained = kept.folder / "export" / "twenty_trained"
    trained.mkdir()
    status, _, err = run_cli(*command, "--replace")
    assert status == 1 and "move it elsewhere" in err
    with pytest.raises(BasiscopeError, match="move it elsewhere"):
        gsm8k_copy.delete_selection("twenty")
    trained.rmdir()
    gsm8k_copy.delete_selection("twenty")
    assert not kept.folder.exists()


def test_an_export_that_cannot_be_is_refused_before_the_old_selection_goes(
    kept, gsm8k_copy, run, run_cli, tmp_path
):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("my only copy")
    before = contents(kept.folder)
    command = ("select", run.id, "--coverage", "--budget", 5, "--name", "twenty", "--workspace", gsm8k_copy.root)
    status, _, err = run_cli(*command, "--out", tmp_path / "thesis", "--replace")
    assert status == 1 and "something else" in err
    assert contents(kept.folder) == before


def test_names_from_the_data_stay_one_piece_of_code():
    assert _code("a\r# b\n\n| `c` \u2028 d") == "`a # b / 'c' d`"


def test_a_format_that_needs_a_response_leaves_nothing_behind(tmp_path):
    space = Workspace(tmp_path / "ws")
    run = synthetic_run(space)
    kept = select(Request(run.id, Rule("random"), Constraints(budget=5)), space, "five")
    with pytest.raises(BasiscopeError, match="no response"):
        export(kept, run, tmp_path / "out", "alpaca")
    assert not list(tmp_path.glob("*out*"))
    command = ["select", run.id, "--coverage", "--budget", "5", "--name", "new", "--format", "alpaca"]
    assert main([*command, "--workspace", str(space.root)]) == 1
    assert [one.name for one in space.selections()] == ["five"]
    export(kept, run, tmp_path / "out", "trl")
    assert "text" in json.loads((tmp_path / "out" / "selection.jsonl").read_text().splitlines()[0])


def test_a_selection_outlives_its_run_and_says_so(kept, gsm8k_copy, run, run_cli):
    gsm8k_copy.delete(run.id)
    assert [one.name for one in gsm8k_copy.selections()] == ["twenty"]
    manifest = kept.folder / "manifest.json"
    status, _, err = run_cli("select", "--from-manifest", manifest, "--name", "x", "--workspace", gsm8k_copy.root)
    assert status == 1 and run.id in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("options", "status", "sentence"),
    [
        (("--coverage",), 2, "--budget"),
        (("--coverage", "--budget", 0), 2, "at least 1"),
        (("--budget", 5), 2, "one rule"),
        (("--coverage", "--baseline", "random", "--budget", 5), 2, "one rule"),
        (("--along", "9+", "--budget", 5), 1, "directions 1 to 3"),
        (("--along", "one", "--budget", 5), 2, "such as 1+,3-"),
        (("--baseline", "label:nope", "--budget", 5), 1, "no column 'nope'"),
        (("--baseline", "best", "--budget", 5), 2, "not one of random"),
        (("--coverage", "--budget", 500), 1, "only 60 examples"),
        (("--coverage", "--budget", 5, "--against", "/nowhere.jsonl"), 1, "cannot be read"),
        (("--coverage", "--budget", 5, "--quota", "a"), 2, "column=value:share"),
        (("--coverage", "--budget", 5, "--name", "../x"), 1, "Selection name"),
        (("--coverage", "--budget", 5, "--source", "nope"), 1, "no such column"),
        (("--coverage", "--budget", 5, "--set", "nope"), 2, "no such set"),
        (("--coverage", "--budget", 5, "--weights", "utility:question"), 2, "--along alone"),
        (("--along", "1+,2-", "--budget", 5, "--weights", "utility:"), 2, "names a column"),
        (("--coverage", "--budget", 5, "--tuning", "lora", "--format", "rows"), 2, "training config"),
        (("--coverage", "--budget", 5, "--weights", "1"), 2, "--along alone"),
        (("--coverage", "--budget", 5, "--floor", 1), 2, "--along alone"),
        (("--coverage", "--budget", 5, "--useful-end", 0.3), 2, "at least one direction"),
        (("--along", "1+", "--weights", "nan", "--budget", 5), 2, "one number above 0"),
        (("--coverage", "--budget", 5, "--seed", -1), 2, "Seed -1"),
        (("--coverage", "--budget", 5, "--pay", "nan"), 2, "must be a number"),
        (("--coverage", "--budget", 5, "--out", "."), 1, "the folder you are in"),
        (("--coverage", "--budget", 5, "--drop-contaminated"), 2, "name them, --against"),
        (("--baseline", "random:kind", "--budget", 5), 2, "takes no column"),
        (("--coverage", "--budget", 5, "--quota", "a=b:0.1,a=b:0.2"), 2, "two shares"),
        (("--coverage", "--budget", 5, "--tuning", "lora"), 2, "add --format of a trainer"),
        (("--coverage", "--budget", 5, "--train-model", "m"), 2, "add --format of a trainer"),
        (("--coverage", "--budget", 5, "--pay", 3), 2, "--source"),
        (("--coverage", "--budget", 5, "--min-tokens", -3), 2, "must not be negative"),
    ],
)
def test_bad_options_end_in_a_sentence_and_keep_nothing(gsm8k_copy, run_cli, options, status, sentence):
    found = run_cli("select", "latest", *options, "--workspace", gsm8k_copy.root)
    assert found[0] == status and sentence in found[2] and "Traceback" not in found[2]
    assert gsm8k_copy.selections() == []


def test_names_are_not_taken_twice(gsm8k_copy, run_cli):
    command = ("select", "latest", "--coverage", "--budget", 5, "--name", "five", "--workspace", gsm8k_copy.root)
    assert run_cli(*command)[0] == 0
    status, _, err = run_cli(*command)
    assert status == 1 and "already" in err
    assert run_cli(*command, "--replace")[0] == 0


@pytest.mark.parametrize("content", ["null", "[]", "{}", "3"])
def test_a_file_that_is_no_manifest_ends_in_a_sentence(gsm8k_copy, run_cli, tmp_path, content):
    (tmp_path / "it.json").write_text(content)
    again = ("select", "--from-manifest", tmp_path / "it.json", "--workspace", gsm8k_copy.root)
    status, _, err = run_cli(*again)
    assert status == 1 and "no manifest of a selection" in err and gsm8k_copy.selections() == []


def test_a_copy_that_fails_leaves_nothing(kept, gsm8k_copy):
    (kept.folder / "ledger.csv").unlink()
    (kept.folder / "ledger.csv").symlink_to("nowhere")
    with pytest.raises(shutil.Error):
        gsm8k_copy.copy_selection("twenty", "other")
    assert [path.name for path in (gsm8k_copy.root / "selections").iterdir()] == ["twenty"]


def test_what_a_look_has_found_is_used_though_nothing_is_removed(tmp_path, run_cli, write_rows):
    held = write_rows([{"question": " ".join(f"word{i}" for i in range(20))}])
    space = Workspace(tmp_path / "ws")
    run = synthetic_run(space, n=20, texts=[f"this is text {i % 7} of them" for i in range(20)])
    request = Request(run.id, Rule("order"), Constraints(budget=9))
    before = select(request, space, "before")
    assert before.manifest["duplicates"] is None and "were not looked for" in card(before, run, "x", [])
    screen_run(run, space, (held,))  # a look with a held-out file: its duplicates are the run's all the same
    after = select(request, space, "after")
    found = {one["example_id"]: one["of"] for one in after.manifest["duplicates"]}
    assert found == {i: i % 7 for i in range(7, 20)} and after.example_ids == before.example_ids
    written = card(after, run, "x", [])
    assert "13 examples of the pool repeat an earlier one, 2 of them are chosen" in written
    assert "Overlaps with held-out files were not looked for" in written and "13 words" not in written
    shutil.rmtree(space.root / "screenings")
    for one in (after, before):  # as it was made, whatever has been looked for since
        again = reproduce(one.manifest, space, "again", replace_old=True)
        assert again.manifest == one.manifest


def test_the_card_says_where_a_list_is_cut(tmp_path):
    from core.provenance import Origins

    space = Workspace(tmp_path)
    run = synthetic_run(space, n=60, columns={"who": [f"w{i}" for i in range(60)]})
    for budget, more in ((35, "And 5 more, in `manifest.json`."), (30, "")):
        request = Request(run.id, Rule("order"), Constraints(budget=budget), Origins("who"))
        written = card(select(request, space, f"{budget}"), run, "x", [])
        assert (more in written) and ("in `manifest.json`." in written) == bool(more)


def test_a_sentence_model_is_known_by_its_files(gsm8k_copy, run, tmp_path):
    folder = tmp_path / "encoder"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "1_Pooling" / "config.json").write_text('{"mean": true}')
    gsm8k_copy.save_text_vectors(run.id, str(folder), np.eye(3, dtype=np.float32))
    first = text_model_fingerprint(str(folder))
    assert gsm8k_copy.has_text_vectors(run.id, str(folder))
    other = folder.rename(tmp_path / "moved")
    assert text_model_fingerprint(str(other)) == first and gsm8k_copy.has_text_vectors(run.id, str(other))
    (other / "1_Pooling" / "config.json").write_text('{"mean": false}')
    assert text_model_fingerprint(str(other)) != first and not gsm8k_copy.has_text_vectors(run.id, str(other))
    assert text_model_fingerprint(None) is None and text_model_fingerprint("hub/model") is None


def test_the_manifest_says_which_sentence_model(gsm8k_copy, run, stories):
    pytest.importorskip("sentence_transformers", reason="the extra `sentences` is not installed")
    request = Request(run.id, Rule("text", text_model=stories), Constraints(budget=5))
    manifest = select(request, gsm8k_copy, "texts").manifest
    assert manifest["fingerprints"]["text_model"] == text_model_fingerprint(stories)
    assert manifest["versions"]["sentence-transformers"]
    manifest["fingerprints"]["text_model"] = "else"
    with pytest.raises(BasiscopeError, match="no longer that of the manifest"):
        reproduce(manifest, gsm8k_copy, "again")


def test_compare_and_list(gsm8k_copy, run_cli):
    for name in ("longest", "shortest"):
        options = ("--baseline", name, "--budget", 30, "--name", name, "--workspace", gsm8k_copy.root)
        assert run_cli("select", "latest", *options)[0] == 0
    _, out, _ = run_cli("compare-selections", "longest", "shortest", "--json", "--workspace", gsm8k_copy.root)
    found = json.loads(out)
    ids = [set(gsm8k_copy.selection(name).example_ids) for name in ("longest", "shortest")]
    assert found["overlap"]["longest"]["shortest"] == len(ids[0] & ids[1]) / len(ids[0] | ids[1])
    assert run_cli("compare-selections", "longest", "--workspace", gsm8k_copy.root)[0] == 2
    assert "longest" in run_cli("selections", "--workspace", gsm8k_copy.root)[1]


def test_the_ledger_is_kept_as_csv_and_in_the_manifest(tmp_path):
    space = Workspace(tmp_path)
    run = synthetic_run(space)
    from core.provenance import Origins

    quota = Quota("kind", (("addition", 0.5),))
    request = Request(
        run.id, Rule("coverage"), Constraints(budget=20, quotas=(quota,)), Origins("kind", total=100)
    )
    kept = select(request, space, "paid")
    ledger = pd.read_csv(kept.folder / "ledger.csv")
    assert ledger["payment"].sum() == pytest.approx(100)
    assert ledger.loc[ledger["source"] == "addition", "examples"].item() == 10
    assert [row["source"] for row in kept.manifest["ledger"]] == ledger["source"].tolist()
    assert Request.from_dict(kept.manifest["request"]) == request


@pytest.mark.parametrize("licence", [None, "kind"])
def test_the_card_says_where_no_source_column_was_named(tmp_path, licence):
    from core.provenance import Origins

    space = Workspace(tmp_path)
    run = synthetic_run(space)
    kept = select(Request(run.id, Rule("order"), Constraints(budget=20), Origins(licence=licence)), space, "whose")
    written = card(kept, run, "data.jsonl", [])
    assert "No source column was named" in written and "(missing)" not in written and "100.0%" not in written
    assert ("Terms of the licences: " in written) == bool(licence)


def test_the_configs_keep_to_the_context_of_the_run_s_own_model(kept, run):
    made = configs(kept, run, "messages", "full", None)
    context = run.manifest["model"]["context"]
    assert context < 8_192 and f"max_length: {context}" in made["trl.yaml"]
    assert f"cutoff_len: {context}" in made["llamafactory.yaml"]
    assert "max_length: 8192" in configs(kept, run, "messages", "full", "another/model")["trl.yaml"]
