"""Chats as people bring them: what the model reads is what the data has."""

import importlib.util
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from core.activations import window_start
from core.chats import message_list, of_turns, read_conversation
from core.errors import BasiscopeError
from core.examples import (
    Columns,
    DataSource,
    ReadReport,
    guess_columns,
    prompt_text,
    question_of,
    read_examples,
    resolve_template,
    token_ids,
    tokenize,
)
from core.usefulness.development import response_start

CHATML = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}<|User|>{{ m['content'] }}"
    "{% else %}<|Assistant|>{{ m['content'].split('</think>')[-1] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
QWEN = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% set c = m.content %}{% set r = m.reasoning_content if m.reasoning_content is string else '' %}"
    "{% if '</think>' in c %}{% set r = c.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<|assistant|>\n{% if loop.last or r %}<think>\n{{ r }}\n</think>\n\n{% endif %}{{ c }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function | tojson }}</call>{% endfor %}<|end|>\n"
    "{% else %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% if enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
PARTS_ALONE = (
    "{% for m in messages %}<|{{ m.role }}|>{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}"
    "{% endif %}{% endfor %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MAPPINGS_ALONE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% for call in m.tool_calls or [] %}"
    "{% for k, v in call.function.arguments.items() %}<{{ k }}>{{ v }}{% endfor %}{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
OBSERVES = (
    "{% for m in messages %}{% if m['role'] == 'observation' %}<|observation|>{{ m['content'] }}"
    "{% elif m['role'] in ['user', 'system', 'assistant'] %}<|{{ m['role'] }}|>{{ m['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "weather"}}]
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}


def tokenizer(template=None, ends="<s> $A"):
    """Every character is a token of its own; `ends` are added around a text."""
    characters = [chr(i) for i in range(32, 127)] + ["\n"]
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *characters])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = decoders.Fuse()
    made.post_processor = processors.TemplateProcessing(single=ends, special_tokens=[("<s>", 1), ("</s>", 2)])
    fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = template
    return fast


@pytest.fixture
def read(write_rows):
    """read(row, template of the tokenizer, columns) -> (example, what was counted)."""

    def one(row, chat_template, template="auto", **columns):
        report, own = ReadReport(), tokenizer(chat_template)
        source, named = DataSource(write_rows([row])), Columns(**(columns or {"messages": "messages"}))
        chosen = resolve_template(template, named, own, source)
        (example,) = read_examples(source, named, chosen, own, report)
        return example, report.sentences()

    return one


def pooled(example, own):
    """The text of the tokens that mean-response pools."""
    (tokens,) = tokenize([example], own, 1_000, spans=True)
    return own.decode(tokens.ids[window_start(tokens, "mean-response") :])


def chat(*said, **beside):
    return {"messages": [{"role": role, "content": content} for role, content in said], **beside}


# --- roles and messages ---------------------------------------------------------------------------------


@pytest.mark.parametrize("answers", ["Assistant", "model", "chatgpt", "gpt", "bot", " ASSISTANT "])
@pytest.mark.parametrize("keys", [("role", "content"), ("from", "value")])
@pytest.mark.parametrize("asks", ["User", "human", "prompter"])
def test_roles_go_by_their_usual_names(read, asks, answers, keys):
    said = [dict(zip(keys, pair, strict=True)) for pair in ((asks, "Two?"), (answers, "It is 2."))]
    example, counted = read({"chat": said}, CHATML, messages="chat")
    assert example.text == "<|user|>Two?<|end|><|assistant|>It is 2.<|end|>" and not counted
    assert example.response == "It is 2." and pooled(example, tokenizer(CHATML)) == "It is 2.<|end|>"


def test_a_role_that_nobody_knows_is_counted_and_no_answer_is_asked_for_after_it(read):
    example, counted = read(chat(("user", "Two?"), ("narrator", "It is 2.")), CHATML)
    assert example.text == "<|user|>Two?<|end|><|narrator|>It is 2.<|end|>" and example.response is None
    assert counted == ["1 row: a role that is not known, kept as it is (row 0; for example 'narrator')"]


@pytest.mark.parametrize("role", ["tool", "observation", "ipython", "function"])
def test_a_role_is_called_as_the_template_calls_it(read, role):
    said = chat(("user", "a"), ("assistant", "b"), (role, "c"), ("assistant", "d"))
    assert "<|observation|>c" in read(said, OBSERVES)[0].text
    assert "<|tool|>c" in read(said, CHATML)[0].text


def test_developer_is_the_system(read):
    assert read(chat(("developer", "x"), ("user", "y")), CHATML)[0].text.startswith("<|system|>x")


@pytest.mark.parametrize("write", [json.dumps, str, lambda messages: messages])
def test_messages_are_read_from_a_list_its_json_and_its_repr(read, write):
    messages = chat(("user", 'It\'s "2"?\u2028'), ("assistant", "Yes."))["messages"]
    example, counted = read({"messages": write(messages)}, CHATML)
    assert example.text == '<|user|>It\'s "2"?\u2028<|end|><|assistant|>Yes.<|end|>' and not counted
    (prompt, answer) = messages
    example, _ = read({"p": write(prompt), "r": write([answer])}, CHATML, prompt="p", response="r")
    assert example.response == "Yes." and example.prompt == '<|user|>It\'s "2"?\u2028<|end|><|assistant|>'


def test_halves_of_surrogate_pairs_in_json_within_a_text_are_replaced():
    assert message_list('[{"role": "user", "content": "a\\ud83d"}]') == [{"role": "user", "content": "a\ufffd"}]


@pytest.mark.parametrize(
    "value",
    ["[not json", "[1]", "{}", "[]", None, 3, "['a']", [{"role": "user"}], [{"content": "a"}], "[" * 100_000],
)
def test_what_is_no_list_of_messages_is_refused(value):
    assert message_list(value) is None or value == [{"role": "user"}]
    with pytest.raises(BasiscopeError, match="not a list of"):
        read_conversation({"messages": value}, {})


@pytest.mark.parametrize(
    "response",
    [
        '{"from": "Paris", "to": "Rome"}',
        '{"role": "admin", "content": "hi"}',
        '[{"from": "Paris", "value": "3"}]',
        '[{"role": "assistant", "content": "hi"}, {"role": "user"}]',
        "{'role': 'user', 'name': 'Ann'}",
    ],
)
def test_a_text_that_is_json_of_something_else_is_a_text(read, response):
    example, counted = read({"prompt": "Two?", "response": response}, None, prompt="prompt", response="response")
    assert (example.text, example.response, counted) == (f"Two?\n{response}", response, [])


# --- more than role and content -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_reaches_the_template_or_is_put_back(read, name):
    row = chat(("user", "Two?"), ("assistant", "It is 2."))
    row["messages"][1][name] = "I add."
    example, counted = read(row, QWEN)
    assert example.text.endswith("<|assistant|>\n<think>\nI add.\n</think>\n\nIt is 2.<|end|>\n") and not counted
    assert pooled(example, tokenizer(QWEN)) == "I add.\n</think>\n\nIt is 2.<|end|>\n"
    for template in (CHATML, R1):
        example, counted = read(row, template)
        assert "<think>\nI add.\n</think>\n\nIt is 2." in example.text and "put back" in counted[0]
        assert pooled(example, tokenizer(template)).startswith("<think>\nI add.\n</think>\n\nIt is 2.")
    assert read(row, None)[0].text == "User: Two?\n\nAssistant: <think>\nI add.\n</think>\n\nIt is 2."


@pytest.mark.parametrize("content", ["", None])
def test_tool_calls_and_tools_reach_the_template_or_are_counted(read, content):
    row = chat(("user", "Cold?"), ("assistant", content), ("tool", "-4"), ("assistant", "Yes."), tools=TOOLS)
    row["messages"][1]["tool_calls"] = [CALL]
    for tools in (TOOLS, json.dumps(TOOLS)):
        example, counted = read(row | {"tools": tools}, QWEN)
        assert '<tools>[{"type": "function", "function": {"name": "weather"}}]</tools>' in example.text
        assert '<call>{"name": "weather", "arguments": {"city": "Oslo"}}</call>' in example.text and not counted
        assert pooled(example, tokenizer(QWEN)) == "Yes.<|end|>\n"
    _, counted = read(row, CHATML)
    assert [line.split(";")[0] for line in counted] == [
        "1 row: the chat template leaves out tool calls",
        "1 row: the chat template leaves out the tools",
    ]
    text = read(row, CHATML, "plain")[0].text
    assert '"weather"' in text.split("User")[0] and 'Assistant: {"name": "weather", "arguments"' in text


def test_an_answer_that_is_a_tool_call_is_pooled_without_the_empty_think_block(read):
    row = chat(("user", "Cold?"), ("assistant", None))
    row["messages"][1]["tool_calls"] = [CALL]
    example, _ = read(row, QWEN)
    assert pooled(example, tokenizer(QWEN)).startswith("<call>")


@pytest.mark.parametrize("arguments", [{"city": "Oslo"}, '{"city": "Oslo"}'])
def test_arguments_come_in_the_form_that_a_template_takes(read, arguments):
    row = chat(("user", "Cold?"), ("assistant", ""))
    row["messages"][1]["tool_calls"] = [{"type": "function", "function": {"name": "w", "arguments": arguments}}]
    assert "<city>Oslo" in read(row, MAPPINGS_ALONE)[0].text


@pytest.mark.parametrize("written", ['{"name": "weather", "arguments": {"city": "Oslo"}}', "not JSON"])
def test_the_role_function_call_is_a_call(read, written):
    said = [("human", "Cold?"), ("function_call", written), ("observation", "-4"), ("gpt", "Yes.")]
    row = {"c": [{"from": role, "value": content} for role, content in said]}
    text = read(row, QWEN, messages="c")[0].text
    assert (f"<call>{written}</call>" if written[0] == "{" else written) in text


@pytest.mark.parametrize(
    ("more", "kept"),
    [
        ({"tool_calls": "call get_weather"}, "call get_weather"),
        ({"tool_calls": [{"arguments": {"city": "Oslo"}}]}, '[{"arguments": {"city": "Oslo"}}]'),
        ({"function_call": {"arguments": "Oslo"}}, '{"arguments": "Oslo"}'),
        ({"function_call": "weather(Oslo)", "tool_calls": []}, "weather(Oslo)"),
    ],
)
@pytest.mark.parametrize("content", [None, "", "I look."])
def test_calls_that_cannot_be_read_stay_as_text_and_are_counted(read, more, kept, content):
    row = chat(("user", "Cold?"), ("assistant", content))
    row["messages"][1] |= more
    for template in (QWEN, CHATML, None):
        example, counted = read(row, template)
        assert example.response == "\n".join(filter(None, (content, kept))) and example.response in example.text
        assert len(counted) == 1 and "calls without a name or form that is known, read as text" in counted[0]


@pytest.mark.parametrize("empty", ["", "null", "[]", [], {"name": None, "arguments": None}])
@pytest.mark.parametrize("name", ["tool_calls", "function_call"])
def test_no_calls_are_no_text(read, name, empty):
    row = chat(("user", "Cold?"), ("assistant", "Yes."))
    row["messages"][1][name] = empty
    example, counted = read(row, QWEN)
    assert example.response == "Yes." and not counted


@pytest.mark.parametrize(
    "written", [{"name": "weather", "arguments": "{}"}, '{"name": "weather", "arguments": "{}"}']
)
def test_a_function_call_is_a_call(read, written):
    row = chat(("user", "Cold?"), ("assistant", None))
    row["messages"][1]["function_call"] = written
    assert '<call>{"name": "weather"' in read(row, QWEN)[0].text


def test_what_a_message_says_under_a_second_name_is_counted(read):
    said = {"role": "user", "from": "human", "content": "Two?", "value": "Two?"}
    answer = {"role": "assistant", "content": "It is 2.", "from": {"name": "Ann"}, "value": "Five."}
    example, counted = read({"messages": [said, answer]}, CHATML)
    assert example.text == "<|user|>Two?<|end|><|assistant|>It is 2.<|end|>"
    assert [line.split(": ", 1)[1] for line in counted] == [
        "a message has a second role or content, from is not read (row 0; for example \"{'name': 'Ann'}\")",
        "a message has a second role or content, value is not read (row 0; for example 'Five.')",
    ]


def test_parts_of_content_are_joined_and_those_that_are_no_text_counted(read):
    parts = [
        {"type": "text", "text": "What is "},
        {"type": "image", "image": "x"},
        {"type": "text", "text": "it?"},
    ]
    answer = [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "A cat."}]
    example, counted = read(chat(("user", parts), ("assistant", answer)), QWEN)
    assert "<|user|>\nWhat is it?<|end|>" in example.text
    assert "<think>\nHm.\n</think>\n\nA cat." in example.text
    assert counted == ["1 row: a part of a message that is no text, left out (row 0; for example 'image')"]


def test_a_template_of_parts_alone_gets_parts(read):
    example, counted = read(chat(("user", "Two?"), ("assistant", "It is 2.")), PARTS_ALONE)
    assert example.text == "<|user|>Two?<|end|><|assistant|>It is 2.<|end|>" and not counted
    assert pooled(example, tokenizer(PARTS_ALONE)) == "It is 2.<|end|>"


def test_columns_beside_the_messages_belong_to_them(read):
    row = chat(
        ("user", "Two?"), system="Be brief.", chat_template_kwargs={"enable_thinking": False, "tokenize": 1}
    )
    example, counted = read(row, QWEN)
    assert (
        example.text
        == "<|system|>\nBe brief.<|end|>\n<|user|>\nTwo?<|end|>\n<|assistant|>\n<think>\n\n</think>\n\n"
    )
    assert "the column system is read as the system message" in counted[0]


# --- what a template does to a response -----------------------------------------------------------------

THOUGHT = "<think>\nI add.\n</think>\n\nIt is 2."


@pytest.mark.parametrize("template", [CHATML, R1, QWEN, PARTS_ALONE, None])
@pytest.mark.parametrize("content", [THOUGHT, "It is 2.", "end", "user", "s"])
def test_the_response_that_is_pooled_is_that_of_the_data(read, template, content):
    example, counted = read(chat(("user", "Two?"), ("assistant", content)), template)
    assert example.response == content and pooled(example, tokenizer(template)).startswith(content)
    assert example.text.startswith(example.prompt) and len(example.prompt) <= example.response_start
    assert example.prompt == read(chat(("user", "Two?"), ("assistant", "Five.")), template)[0].prompt
    assert ("put back" in "".join(counted)) == (template == R1 and content == THOUGHT)


def test_what_a_template_leaves_out_of_earlier_turns_is_counted(read):
    row = chat(("user", "Two?"), ("assistant", THOUGHT), ("user", "Three?"), ("assistant", "Three."))
    example, counted = read(row, R1)
    assert "I add" not in example.text and example.text.endswith("<|Assistant|>Three.</s>")
    assert counted[0].startswith(
        "1 row: the chat template leaves out part of a message; --template plain keeps it"
    )


def test_an_empty_response_has_nothing_to_pool(read):
    example, _ = read(chat(("user", "Two?"), ("assistant", "")), QWEN)
    (tokens,) = tokenize([example], tokenizer(QWEN), 1_000, spans=True)
    assert window_start(tokens, "mean-response") is None


@pytest.mark.parametrize(
    ("ends", "text"),
    [("<s> $A", "<s>Once"), ("<s> $A", "Once"), ("<s> $A </s>", "<s>Once</s>"), ("<s> $A </s>", "Once")],
)
def test_a_text_that_brings_its_own_bos_has_one(read, ends, text):
    example, _ = read({"t": text}, None, text="t")
    own = tokenizer(ends=ends)
    (tokens,) = tokenize([example], own, 100, spans=True)
    assert own.decode(tokens.ids) == "<s>Once" + "</s>" * ("</s>" in ends)
    assert tokens.ids == token_ids(text, own, True)


def test_tokens_that_a_text_repeats_itself_stay(read):
    own = tokenizer(ends="$A")
    assert own.decode(token_ids("<s><s>Once</s></s>", own, True)) == "<s><s>Once</s></s>"


# --- prompt and response --------------------------------------------------------------------------------


@pytest.mark.parametrize("response", [[{"role": "assistant", "content": "It is 2."}], "It is 2."])
@pytest.mark.parametrize("prompt", [[{"role": "user", "content": "Two?"}], "Two?"])
def test_prompt_and_completion_may_be_messages(read, prompt, response):
    row = {"prompt": prompt, "completion": response}
    asked = {"prompt": "prompt", "response": "completion"}
    example, _ = read(row, CHATML, **asked)
    is_chat = not isinstance(prompt, str)
    written = "<|user|>Two?<|end|><|assistant|>It is 2.<|end|>" if is_chat else "Two?\nIt is 2."
    assert example.text == written and example.response == "It is 2."
    assert read(row, None, **asked)[0].text == "Two?\nIt is 2."
    assert read(row, CHATML, "chat", **asked)[0].text == "<|user|>Two?<|end|><|assistant|>It is 2.<|end|>"


def test_a_completion_of_several_messages_is_the_response(read):
    prompt = [{"role": "user", "content": "Cold?"}]
    completion = [{"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "-4"}]
    completion.append({"role": "assistant", "content": "Yes."})
    example, _ = read({"p": prompt, "c": completion, "tools": TOOLS}, QWEN, prompt="p", response="c")
    assert pooled(example, tokenizer(QWEN)).startswith("<call>") and "<tools>" in example.text


@pytest.mark.parametrize("prompt", ["Two?", [{"role": "user", "content": "Two?"}]])
def test_a_chosen_conversation_says_its_prompt_once_and_that_the_rejected_is_not_read(read, prompt):
    chosen = chat(("user", "Two?"), ("assistant", "It is 2."))["messages"]
    row = {"prompt": prompt, "chosen": chosen, "rejected": chosen}
    assert guess_columns(list(row)) == Columns(prompt="prompt", response="chosen")
    example, counted = read(row, CHATML, "chat", prompt="prompt", response="chosen")
    assert example.text == "<|user|>Two?<|end|><|assistant|>It is 2.<|end|>"
    assert "the column rejected is not read" in counted[0]


def test_an_instruction_has_its_input_below_it(read):
    row = {"instruction": "Translate.", "input": "The cat", "output": "Le chat"}
    guess = guess_columns(list(row))
    assert guess == Columns(prompt="instruction", response="output", input="input")
    example, counted = read(row, None, **guess.named())
    assert (example.text, example.prompt) == (
        "Translate.\nThe cat\nLe chat",
        "Translate.\nThe cat",
    ) and not counted
    for empty in ("", None):
        assert read(row | {"input": empty}, None, **guess.named())[0].text == "Translate.\nLe chat"
    _, counted = read(row, None, prompt="instruction", response="output")
    assert "the column input is not read; --input input reads it" in counted[0]
    with pytest.raises(BasiscopeError, match="'inptu'"):
        read(row, None, prompt="instruction", response="output", input="inptu")


@pytest.mark.parametrize(
    ("asked", "beside"), [("instruction", "context"), ("Instruction", "Input"), ("question", "context")]
)
def test_what_belongs_to_a_question_under_another_name_is_said(read, asked, beside):
    row = {asked: "Where?", beside: "In Rome.", "response": "Rome"}
    _, counted = read(row, None, prompt=asked, response="response")
    assert f"the column {beside} is not read; --input {beside} reads it" in counted[0]
    example, counted = read(row, None, prompt=asked, response="response", input=beside)
    assert example.prompt == "Where?\nIn Rome." and not counted


@pytest.mark.parametrize("template", [CHATML, QWEN, R1, None])
def test_what_is_asked_is_the_beginning_of_its_example(read, template):
    row = chat(("user", "Cold?"), ("assistant", None), ("tool", "-4"), ("user", "So?"), ("assistant", "Yes."))
    row |= {"tools": TOOLS, "system": "Be brief."}
    row["messages"][1]["tool_calls"] = [CALL]
    example, _ = read(row, template)
    text, before = question_of(row, {"messages": "messages"})
    assert text == "So?" and json.loads(json.dumps(before)) == [list(turn) for turn in before]
    chosen = "plain" if template is None else "chat"
    prompt, _ = prompt_text(text, {"messages": "messages"}, chosen, tokenizer(template), before)
    assert example.text.startswith(prompt.removesuffix("<think>\n"))


@pytest.mark.parametrize("role", ["tools", "chat_template_kwargs"])
@pytest.mark.parametrize("tools", [TOOLS, None])
def test_a_role_that_is_called_as_a_column_is_stays_a_message(role, tools):
    row = chat((role, "[]"), ("user", "Cold?"), (role, '[{"name": "x"}]'), ("user", "So?"), tools=tools)
    text, before = question_of(row, {"messages": "messages"})
    told = of_turns(json.loads(json.dumps(before)))
    assert list(told.messages) == row["messages"][:-1] and (told.tools, text) == (tools, "So?")
    prompt, _ = prompt_text(text, {"messages": "messages"}, "chat", tokenizer(QWEN), before)
    assert f"<|{role}|>\n[]<|end|>" in prompt and ("<tools>" in prompt) is bool(tools)


def test_turns_that_were_kept_earlier_open():
    told = of_turns((("tools", json.dumps(TOOLS)), ("chat_template_kwargs", '{"a": 1}'), ("user", "Cold?")))
    assert (told.tools, told.choices) == (TOOLS, {"a": 1})
    assert told.messages == ({"role": "user", "content": "Cold?"},)


def test_a_trace_begins_where_its_response_does_and_not_in_the_token_that_ends_it():
    prompt = "<|user|>Two?<|end|><|assistant|>"
    assert response_start(f"{prompt}e<|end|>", prompt, "e") == len(prompt)
    assert response_start("Two?\ne", "Two?", "e") == 5 == response_start("Two?\ne", "", "e")
    assert response_start(f"{prompt}<think>\nHm.</think>e", prompt, "<think>\nHm.\n</think>\n\ne") == len(prompt)
    assert response_start("Two?\n", "Two?", "") is None


def test_a_call_that_the_template_leaves_out_is_nothing_to_pool(read):
    row = chat(("user", "Cold?"), ("assistant", None))
    row["messages"][1]["tool_calls"] = [CALL]
    example, counted = read(row, CHATML)
    assert example.response_start == len(example.text) and "leaves out tool calls" in counted[0]


def published_templates():
    """The chat templates that TRL ships, of many models."""
    spec = importlib.util.find_spec("trl")
    folder = Path(spec.origin).parent / "chat_templates" if spec and spec.origin else Path()
    return sorted(folder.glob("*.jinja")) or [pytest.param(None, marks=pytest.mark.skip("TRL is not installed"))]


@pytest.mark.parametrize("path", published_templates(), ids=lambda path: path and path.stem)
def test_published_templates_keep_the_response_whole(read, path):
    template = path.read_text(encoding="utf-8")
    for content in ("It is 2.", THOUGHT):
        example, _ = read(chat(("user", "Two?"), ("assistant", content)), template)
        found = "".join(example.text[example.response_start :].split())
        assert found.startswith("".join(content.split())), example.text
    parameters = {"type": "object", "properties": {"city": {"type": "string", "description": "Where"}}}
    function = {"name": "weather", "description": "The weather", "parameters": parameters}
    row = chat(("user", "Cold?"), ("assistant", None), tools=[{"type": "function", "function": function}])
    row["messages"][1]["tool_calls"] = [CALL]
    example, counted = read(row, template)
    found = example.text[example.response_start :]
    assert ("weather" in found and "Oslo" in found) or "leaves out tool calls" in "".join(counted)
