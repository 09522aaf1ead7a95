"""Chats through an export and the readers of the trainers: what is trained on is what was read."""

import json

import pytest
from test_chats import CALL, QWEN, THOUGHT, TOOLS, chat, tokenizer
from test_export_selection import as_llama_factory_reads, factory  # noqa: F401
from tiny import SHAPE, save_tiny
from transformers import LlamaConfig

from core.activations import Recipe
from core.errors import BasiscopeError
from core.examples import Columns, DataSource
from core.recovery import Request as Recovery
from core.recovery import recover
from core.selection.export import conversation, export, formatted
from core.selection.pool import Constraints, Rule
from core.selection.step import Request, select
from core.workspace import Workspace

ODD = "a\u2028b\x85c\u2029 é\x00\tend  \n"
LONG = {"max_position_embeddings": 2_048, "vocab_size": 128}


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """A tiny model whose chat template has tools, tool calls and reasoning."""
    folder = tmp_path_factory.mktemp("qwen")
    save_tiny(LlamaConfig(**(SHAPE | LONG)), folder)
    tokenizer(QWEN).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def kept_of(qwen, tmp_path):
    """kept_of(rows, **columns) -> (selection of all rows in order, its run)."""

    def made(rows, template="auto", **columns):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        space = Workspace(tmp_path / "ws")
        recipe = Recipe(dtype="float32", template=template)
        asked = Recovery(
            qwen, DataSource(str(path)), Columns(**columns), recipe, k=2, device="cpu", with_map=False
        )
        run = recover(asked, space)
        return select(Request(run.id, Rule("order"), Constraints(budget=len(rows))), space, "all"), run

    return made


def loaded(folder, tmp_path):
    from datasets import load_dataset

    return load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))


def trained_ids(data, qwen, tmp_path):
    """The token ids of every example as TRL's trainer makes them."""
    from trl import SFTConfig, SFTTrainer

    asked = SFTConfig(output_dir=str(tmp_path), max_length=None, use_cpu=True, bf16=False, report_to="none")
    return list(SFTTrainer(qwen, args=asked, train_dataset=data).train_dataset["input_ids"])


def rich_rows(n=4):
    rows = []
    for i in range(n):
        row = chat(("system", f"Be {i}."), ("user", f"{ODD}{i}"), ("assistant", None), ("tool", "-4"), tools=TOOLS)
        row["messages"][2]["tool_calls"] = [CALL]
        row["messages"][3] |= {"tool_call_id": "c1", "name": "weather"}
        row["messages"].append({"role": "assistant", "content": f"Yes {i}. ", "reasoning_content": f"Hm {i}."})
        rows.append(row)
    return rows


@pytest.mark.parametrize("form", ["trl", "messages", "axolotl"])
def test_trainers_read_all_that_the_model_read(kept_of, qwen, tmp_path, form):
    rows = rich_rows()
    kept, run = kept_of(rows, messages="messages")
    export(kept, run, tmp_path / "out", form)
    data = loaded(tmp_path / "out", tmp_path)
    assert [row["messages"] for row in data] == [row["messages"] for row in rows]
    tools = [row["tools"] if form != "messages" else json.loads(row["tools"]) for row in data]
    assert tools == [row["tools"] for row in rows]
    if form != "axolotl":  # its own strategy is not made here: it asks for its whole config
        windows = run.windows()
        assert trained_ids(data, qwen, tmp_path) == [windows.tokens(i).tolist() for i in range(len(rows))]


def test_rows_and_parquet_give_back_what_came(kept_of, tmp_path):
    rows = rich_rows()
    kept, run = kept_of(rows, messages="messages")
    for form in ("rows", "parquet"):
        export(kept, run, tmp_path / form, form)
    assert [dict(row) for row in loaded(tmp_path / "rows", tmp_path)] == rows
    for row, source in zip(loaded(tmp_path / "parquet", tmp_path), rows, strict=True):
        assert {name: json.loads(value) for name, value in row.items()} == source


def test_sharegpt_has_calls_tools_and_reasoning_as_llama_factory_reads_them(kept_of, factory, tmp_path):  # noqa: F811
    kept, run = kept_of(rich_rows(), messages="messages")
    export(kept, run, tmp_path / "out", "sharegpt")
    for i, (prompt, response, system) in enumerate(as_llama_factory_reads(factory, tmp_path / "out")):
        assert prompt[0] == f"{ODD}{i}" and json.loads(prompt[1]) == CALL["function"] and prompt[2] == "-4"
        assert (response, system) == ([f"<think>\nHm {i}.\n</think>\n\nYes {i}. "], f"Be {i}.")
    assert {json.loads(row["tools"])[0]["function"]["name"] for row in loaded(tmp_path / "out", tmp_path)} == {
        "weather"
    }
    card = (tmp_path / "out" / "README.md").read_text()
    assert (
        "4 of the examples have keys in their messages that this format has no place for: name, tool_call_id."
        in card
    )


@pytest.mark.parametrize("form", ["trl", "messages", "axolotl", "sharegpt", "alpaca"])
def test_arguments_of_the_template_are_written_or_said_to_be_left_out(kept_of, tmp_path, form):
    choices = {"enable_thinking": False}
    rows = [chat(("user", f"{i}?"), ("assistant", "Yes."), chat_template_kwargs=choices) for i in range(4)]
    kept, run = kept_of(rows, messages="messages")
    export(kept, run, tmp_path / "out", form)
    written = json.loads((tmp_path / "out" / "selection.jsonl").read_text().splitlines()[0])
    said = "4 of the examples have chat_template_kwargs, which this format has no place for."
    is_said = said in (tmp_path / "out" / "README.md").read_text()
    assert (written.get("chat_template_kwargs"), is_said) in ((choices, False), (None, True))


def test_messages_that_llama_factory_cannot_read_come_without_its_files(kept_of, tmp_path):
    kept, run = kept_of(rich_rows(), messages="messages")
    files = export(kept, run, tmp_path / "out", "messages")
    assert "trl.yaml" in files and not {"dataset_info.json", "llamafactory.yaml"} & set(files)
    assert "4 of the conversations have tool calls or reasoning" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(BasiscopeError, match=r"has tool calls\. Use --format messages"):
        export(kept, run, tmp_path / "no", "alpaca")
    assert not (tmp_path / "no").exists()


def test_text_beside_a_tool_call_is_refused_by_sharegpt():
    row = chat(("user", "Cold?"), ("assistant", "I look."))
    row["messages"][1]["tool_calls"] = [CALL]
    with pytest.raises(BasiscopeError, match="text beside a tool call"):
        formatted({"example_id": 0}, row, {"messages": "messages"}, "sharegpt")


@pytest.mark.parametrize("form", ["alpaca", "sharegpt"])
def test_reasoning_is_written_in_a_think_block_where_there_are_texts_alone(form):
    row = chat(("human", "Two?"), ("gpt", "It is 2."))
    row["messages"][1]["reasoning_content"] = "I add."
    written = json.dumps(formatted({"example_id": 0}, row, {"messages": "messages"}, form))
    assert json.dumps(THOUGHT)[1:-1] in written


def test_prompt_and_completion_come_back_as_trl_reads_them(kept_of, qwen, tmp_path):
    rows = [
        {
            "prompt": [{"role": "user", "content": f"{ODD}{i}?"}],
            "completion": [{"role": "model", "content": THOUGHT}],
        }
        for i in range(4)
    ]
    kept, run = kept_of(rows, prompt="prompt", response="completion")
    export(kept, run, tmp_path / "out", "trl")
    data = loaded(tmp_path / "out", tmp_path)
    assert [row["prompt"] for row in data] == [row["prompt"] for row in rows]
    assert [row["completion"] for row in data] == [[{"role": "assistant", "content": THOUGHT}]] * 4
    windows = run.windows()
    assert trained_ids(data, qwen, tmp_path) == [windows.tokens(i).tolist() for i in range(4)]
    export(kept, run, tmp_path / "a", "alpaca")
    (first, *_) = (json.loads(line) for line in (tmp_path / "a" / "selection.jsonl").read_text().splitlines())
    assert (first["instruction"], first["output"]) == (f"{ODD}0?", THOUGHT)


def test_texts_that_went_through_the_chat_template_are_trained_on_so(kept_of, qwen, tmp_path):
    rows = [{"q": f"{ODD}{i}", "a": f" {i} "} for i in range(4)]
    kept, run = kept_of(rows, "chat", prompt="q", response="a")
    export(kept, run, tmp_path / "out", "trl")
    windows = run.windows()
    found = trained_ids(loaded(tmp_path / "out", tmp_path), qwen, tmp_path)
    assert found == [windows.tokens(i).tolist() for i in range(4)]


def test_instruction_and_input_stay_apart_in_alpaca(kept_of, factory, tmp_path):  # noqa: F811
    rows = [
        {"instruction": "Translate.", "input": text, "output": f"Le {i}"} for i, text in enumerate(("x", "", ODD))
    ]
    kept, run = kept_of(rows, prompt="instruction", input="input", response="output")
    export(kept, run, tmp_path / "out", "alpaca")
    data = loaded(tmp_path / "out", tmp_path)
    assert [{name: row[name] for name in rows[0]} for row in data] == rows
    read = as_llama_factory_reads(factory, tmp_path / "out")
    asked = [f"Translate.\n{row['input']}" if row["input"] else "Translate." for row in rows]
    assert [prompt for prompt, _, _ in read] == [[text] for text in asked]
    assert run.examples(["prompt"])["prompt"].tolist() == asked
    export(kept, run, tmp_path / "t", "trl")
    assert [row["prompt"] for row in loaded(tmp_path / "t", tmp_path)] == [f"{text}\n" for text in asked]


def test_a_role_as_it_came_is_that_of_the_rows_and_the_usual_one_that_of_trainers():
    row = {"c": [{"from": "human", "value": "Two?"}, {"from": "chatgpt", "value": "2."}]}
    told = conversation({"example_id": 0}, row, {"messages": "c"})
    assert [message["role"] for message in told.messages] == ["user", "assistant"]
    written = formatted({"example_id": 0}, row, {"messages": "c"}, "sharegpt")
    assert written["conversations"] == [{"from": "human", "value": "Two?"}, {"from": "gpt", "value": "2."}]
