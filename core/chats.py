"""Chat messages: read as data sets spell them, and rendered as the model reads them."""

from __future__ import annotations

import ast
import inspect
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from core.chat_template import render_template
from core.errors import BasiscopeError
from core.readers import without_surrogates

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]
"""`role` (by its usual name where it has one), `content` (text or None), and all other keys as they came in."""
Turns = tuple[tuple[str, ...], ...]
"""Messages of a conversation as (role, content), or (role, content, JSON of the other keys); the tools that
it may use as ("tools", JSON). A message whose role is called so always has the third part."""
Note = tuple[str, str]
"""What is to be counted, and an example of it."""

ROLE_NAMES = {
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "model", "chatgpt", "bot", "chatbot", "ai", "bing", "bard"),
    "system": ("system", "developer"),
    "tool": ("tool", "observation", "ipython", "function", "tool_response", "function_response"),
}
"""Names of roles in ShareGPT's, LLaMA-Factory's, axolotl's, OpenAI's, Gemini's and Llama's data."""
CALLS = ("function_call", "tool_call", "tool_calls")
"""Roles of an assistant's message whose content is the JSON of its calls."""
NO_CALLS = ("", "null", "None", "[]", "{}")
REASONING = ("reasoning_content", "thinking", "reasoning")
TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
BESIDE = ("tools", "chat_template_kwargs", "system")
"""Columns beside the messages that belong to the conversation, as TRL, LLaMA-Factory and axolotl read them."""
NO_MESSAGES = "messages are not a list of {role, content} or {from, value}"
PUT_BACK = (
    "the chat template leaves out part of the response, which is put back; a trainer that uses this template "
    "leaves it out"
)
REPR = "[{'type': 'text', 'text': "
"""What a template writes that takes texts alone, where it is given a list of parts."""
MARK = "\ue000response\ue001"


@dataclass(frozen=True)
class Conversation:
    """Messages, of which those from `split` on are the response; `tools` and `choices` are further arguments of
    the chat template; `notes`: what of the data is not as it came in."""

    messages: tuple[Message, ...]
    split: int
    tools: Any = None
    choices: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()

    @property
    def before(self) -> tuple[Message, ...]:
        return self.messages[: self.split]

    @property
    def response(self) -> tuple[Message, ...]:
        return self.messages[self.split :]

    @property
    def said(self) -> str | None:
        """The response in plain words; None where there is none."""
        return "\n\n".join(map(said, self.response)) if self.response else None


@dataclass(frozen=True)
class Rendered:
    """The text of a conversation: `start` is the character at which its response begins, None without one."""

    text: str
    prompt: str
    start: int | None
    notes: tuple[Note, ...] = ()


# --- reading --------------------------------------------------------------------------------------------


@lru_cache(maxsize=1_000)
def usual_role(role: str) -> str | None:
    """
    >>> [usual_role(role) for role in ("Human", "chatgpt", "function-call", "developer", "narrator")]
    ['user', 'assistant', 'assistant', 'system', None]
    """
    if _written(role) in CALLS:
        return "assistant"
    return next((usual for usual, names in ROLE_NAMES.items() if _written(role) in names), None)


def _written(role: str) -> str:
    return re.sub(r"[\s-]+", "_", role.strip().lower())


def message_list(value: Any) -> list[Mapping[str, Any]] | None:
    """Messages as a list of mappings, whether they came as a list, as one message alone, or as the JSON (or
    Python's repr, as pandas writes it to CSV) of either; None for anything else."""
    value = _parsed(value) if isinstance(value, str) else value
    items = [value] if isinstance(value, Mapping) else value
    return items if isinstance(items, list) and items and all(map(_is_message, items)) else None


def _is_message(item: Any) -> bool:
    return isinstance(item, Mapping) and isinstance(_first(item, "role", "from"), str)


def are_messages(value: Any) -> bool:
    """Whether a prompt or a response is messages. A text may be the JSON of anything, and is only where each of
    its objects has a role and what it says, and one of the roles is known."""
    items = message_list(value)
    if not isinstance(value, str) or items is None:
        return items is not None
    says = {"content", "value", "tool_calls", "function_call", *REASONING}
    return all(says & item.keys() for item in items) and any(map(usual_role, map(_spelt, items)))


def read_conversation(values: Mapping[str, Any], beside: Mapping[str, Any]) -> Conversation:
    """The conversation of a row.

    values: `messages`, or `prompt` (or `text`) and perhaps `response`, each a text or messages
    beside: what the row has under the names of BESIDE

    Raises BasiscopeError where the messages are none.
    """
    if "messages" in values:
        messages, notes = _read(values["messages"])
        split = len(messages) - (messages[-1]["role"] == "assistant")
    else:
        messages, notes = _said_by("user", values.get("prompt", values.get("text")))
        split = len(messages) - ("response" not in values and messages[-1]["role"] == "assistant")
        if "response" in values:
            response, more = _said_by("assistant", values["response"])
            repeated = _place_of(messages[-1], response)
            messages = messages + response if repeated is None else response
            split, notes = split if repeated is None else repeated + 1, notes + more
    system, extra, told = _beside(beside, has_system=messages[0]["role"] == "system")
    return Conversation(
        (*system, *messages),
        split + len(system),
        notes=(*notes, *told),
        tools=extra["tools"],
        choices=extra["choices"],
    )


def _place_of(asked: Message, messages: Sequence[Message]) -> int | None:
    """Where a response that is a whole conversation repeats what was asked."""
    same = (
        i for i, m in enumerate(messages[:-1]) if (m["role"], m["content"]) == (asked["role"], asked["content"])
    )
    return next(same, None)


def _said_by(role: str, value: Any) -> tuple[list[Message], list[Note]]:
    return _read(value) if are_messages(value) else ([{"role": role, "content": str(value)}], [])


def _read(value: Any) -> tuple[list[Message], list[Note]]:
    items = message_list(value)
    if items is None:
        raise BasiscopeError(NO_MESSAGES)
    read = [_message(item) for item in items]
    return [message for message, _ in read], [note for _, notes in read for note in notes]


def _message(item: Mapping[str, Any]) -> tuple[Message, list[Note]]:
    named = {"role", "from", "content", "value"} - _told_apart(item)
    more = {key: value for key, value in item.items() if key not in named and value is not None}
    spelt, content = _spelt(item), _first(item, "content", "value")
    notes = [
        (f"a message has a second role or content, {key} is not read", str(item[key]))
        for key in more
        if key in ("from", "value")
    ]
    if isinstance(content, list | Mapping):
        content, reasoning, left_out = _joined(content)
        notes += left_out
        more |= {"reasoning_content": reasoning} if reasoning else {}
    role = usual_role(spelt)
    if _written(spelt) in CALLS and (calls := _calls(content)):
        more, content = more | {"tool_calls": calls}, None
    more, unread = _with_calls(more)
    if unread and isinstance(content, str | None):
        content = "\n".join(filter(None, (content, unread)))
        notes.append(("calls without a name or form that is known, read as text", unread))
    if not isinstance(content, str) and not (content is None and {"tool_calls", *REASONING} & more.keys()):
        raise BasiscopeError(NO_MESSAGES)
    if role is None:
        notes.append(("a role that is not known, kept as it is", spelt))
    return {"role": role or spelt, "content": content, **more}, notes


def _told_apart(item: Mapping[str, Any]) -> set[str]:
    """Which of `from` and `value` say something else than the `role` and `content` beside them."""
    roles, contents = ([item.get(key) for key in keys] for keys in (("role", "from"), ("content", "value")))
    usual = {usual_role(str(role)) or str(role) for role in roles}
    same_role, same_content = None in roles or len(usual) == 1, None in contents or contents[0] == contents[1]
    return {key for key, same in (("from", same_role), ("value", same_content)) if not same}


def _with_calls(more: Message) -> tuple[Message, str]:
    """(the other keys of a message, its calls as a list of mappings; the text of what are no such calls)."""
    name = "tool_calls" if more.get("tool_calls") or "function_call" not in more else "function_call"
    if name not in more or more[name] == []:
        return more, ""
    written = more[name]
    others = {key: value for key, value in more.items() if key not in (name, "tool_calls")}
    calls = _listed(written) if name == "tool_calls" else _calls(written)
    if calls and all(isinstance(function_of(call).get("name"), str) for call in calls):
        return others | {"tool_calls": calls}, ""
    is_empty = written in NO_CALLS or (isinstance(written, Mapping) and written == dict.fromkeys(written))
    return others, "" if is_empty else written if isinstance(written, str) else to_json(written)


def _spelt(item: Mapping[str, Any]) -> str:
    return str(_first(item, "role", "from"))


def _first(item: Mapping[str, Any], *keys: str) -> Any:
    return next((item[key] for key in keys if item.get(key) is not None), None)


def _joined(parts: Any) -> tuple[str, str, list[Note]]:
    """(text, reasoning, notes) of content that is a list of parts."""
    texts, thoughts, notes = [], [], []
    for part in parts if isinstance(parts, list) else [parts]:
        kind = "text" if isinstance(part, str) else part.get("type") or "text" if isinstance(part, Mapping) else ""
        text = part if isinstance(part, str) else _first(part, "text", str(kind)) if kind else None
        if kind in ("thinking", "reasoning") and text is not None:
            thoughts.append(text if isinstance(text, str) else _joined(text)[0])
        elif kind in TEXT_PARTS and isinstance(text, str):
            texts.append(text)
        else:
            notes.append(("a part of a message that is no text, left out", str(kind or part)))
    return "".join(texts), "".join(thoughts), notes


def _calls(written: Any) -> list[dict[str, Any]] | None:
    """Calls as `tool_calls` has them, from the JSON of {name, arguments} or a list of these."""
    calls = _parsed(written) if isinstance(written, str) else written
    calls = [calls] if isinstance(calls, Mapping) else calls
    if not (isinstance(calls, list) and calls and all(isinstance(c, Mapping) and c.get("name") for c in calls)):
        return None
    return [{"type": "function", "function": dict(call)} for call in calls]


def _parsed(text: str) -> Any:
    """What a text is the JSON, or Python's repr, of, if it is a list or a mapping."""
    if text.lstrip()[:1] not in ("[", "{"):
        return None
    for parse in (json.loads, ast.literal_eval):
        with warnings.catch_warnings(), suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            warnings.simplefilter("ignore")  # of escapes that Python does not know
            return without_surrogates(parse(text.strip()))
    return None


def _beside(beside: Mapping[str, Any], has_system: bool) -> tuple[tuple[Message, ...], dict[str, Any], list[Note]]:
    """(system message, tools and choices, notes) from the columns beside the messages."""
    tools, choices, system = (beside.get(name) for name in BESIDE)
    listed = _listed(tools)
    notes = [("the column tools is no list of tools, left out", str(tools))] if tools and not listed else []
    choices = _parsed(choices) if isinstance(choices, str) else choices
    extra = {"tools": listed, "choices": dict(choices) if isinstance(choices, Mapping) else {}}
    if not isinstance(system, str) or not system or has_system:
        return (), extra, notes
    notes.append(("the column system is read as the system message", system))
    return ({"role": "system", "content": system},), extra, notes


def _listed(value: Any) -> list[Any] | None:
    value = _parsed(value) if isinstance(value, str) else value
    items = [value] if isinstance(value, Mapping) else value
    if not isinstance(items, list) or not items:
        return None
    found = [_parsed(item) if isinstance(item, str) else item for item in items]
    return found if all(isinstance(item, Mapping) for item in found) else None


# --- turns ----------------------------------------------------------------------------------------------


def as_turns(chat: Conversation, stop: int) -> Turns:
    """What comes before the message `stop`, as texts alone."""
    extra = {"tools": chat.tools, "chat_template_kwargs": dict(chat.choices)}
    turns = [(name, to_json(value)) for name, value in extra.items() if value]
    for message in chat.messages[:stop]:
        more = {key: value for key, value in message.items() if key not in ("role", "content")}
        written = (to_json(more),) if more or message["role"] in extra else ()
        turns.append((message["role"], message["content"] or "", *written))
    return tuple(turns)


def turn_line(turn: Sequence[str]) -> str:
    """One turn as it is shown."""
    role, *told = turn
    return f"{role}: {' '.join(filter(None, told))}"


def of_turns(turns: Turns) -> Conversation:
    """The conversation that `as_turns` has written, without a response."""
    beside = {turn[0]: turn[1] for turn in turns if _is_beside(turn)}
    messages = [
        {"role": role, "content": content, **(json.loads(more[0]) if more else {})}
        for role, content, *more in (turn for turn in turns if not _is_beside(turn))
    ]
    _, extra, _ = _beside(beside, has_system=True)
    return Conversation(tuple(messages), len(messages), tools=extra["tools"], choices=extra["choices"])


def _is_beside(turn: Sequence[str]) -> bool:
    return len(turn) == 2 and turn[0] in ("tools", "chat_template_kwargs")


# --- in plain words -------------------------------------------------------------------------------------


def said(message: Message) -> str:
    """All that a message says, as text: its reasoning in a think block, its content, the JSON of its calls."""
    calls = [to_json(function_of(call)) for call in tool_calls(message)]
    content = message["content"] or ""
    return thought(message) + "\n".join([*([content] if content or not calls else []), *calls])


def function_of(call: Mapping[str, Any]) -> Mapping[str, Any]:
    """The name and arguments of a call."""
    function = call.get("function")
    return function if isinstance(function, Mapping) else call


def thought(message: Message) -> str:
    """A message's reasoning as the think block that reasoning models write before their answer."""
    reasoning = _reasoning(message)
    return f"<think>\n{reasoning}\n</think>\n\n" if reasoning else ""


def _reasoning(message: Message) -> str | None:
    return next(
        (message[name] for name in REASONING if message.get(name) and isinstance(message[name], str)), None
    )


def to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def tool_calls(message: Message) -> list[Mapping[str, Any]]:
    calls = message.get("tool_calls")
    return [call for call in calls if isinstance(call, Mapping)] if isinstance(calls, list) else []


def paragraphs(messages: Sequence[Message], tools: Any = None) -> str:
    """`Role: what was said`, with an empty line between."""
    listed = [f"Tools: {to_json(tools)}"] if tools else []
    return "\n\n".join([*listed, *(f"{_speaker(message)}: {said(message)}" for message in messages)])


def _speaker(message: Message) -> str:
    name = message.get("name")
    return message["role"].capitalize() + (f" ({name})" if isinstance(name, str) and name else "")


def plain(chat: Conversation) -> Rendered:
    """A conversation in paragraphs."""
    before, response = paragraphs(chat.before, chat.tools), chat.response
    if not response:
        return Rendered(before, before, None)
    prompt = f"{before}\n\n" if before else ""
    prompt += f"{_speaker(response[0])}: "
    text = prompt + said(response[0])
    if more := paragraphs(response[1:]):
        text += f"\n\n{more}"
    return Rendered(text, prompt, len(prompt))


# --- through the chat template --------------------------------------------------------------------------


def render(chat: Conversation, tokenizer: PreTrainedTokenizerBase, prompt_only: bool) -> Rendered:
    """A conversation through the tokenizer's chat template, or only what stands before its response with the
    generation prompt. What the template leaves out of the response is put back; what else it leaves out is noted.

    Raises BasiscopeError where the template refuses the messages.
    """
    if prompt_only or not chat.response:
        asks = prompt_only or usual_role(chat.messages[-1]["role"]) is not None
        asked = replace(chat, messages=chat.before)
        form, prompt = _fitting(tokenizer, asked, generation_prompt=asks)
        return Rendered(prompt, prompt, None, tuple(_left_out(asked, prompt)))
    form, text = _fitting(tokenizer, chat, generation_prompt=False)
    prompt = _chat(tokenizer, form(chat.before), chat, generation_prompt=True)
    if _is_whole(chat, text, prompt):
        return Rendered(text, prompt, len(prompt), tuple(_left_out(chat, text)))
    text, notes = _put_back(tokenizer, form, chat, text)
    start = _response_start(tokenizer, form, chat, text, prompt)
    shown = text[: min(start, _shared(prompt, text))]  # alike for all responses to a question
    return Rendered(text, shown, start, (*notes, *_left_out(chat, text)))


def _is_whole(chat: Conversation, text: str, prompt: str) -> bool:
    """Whether the text is the prompt and the one message that is the response, with nothing between."""
    first = chat.response[0]
    content = (first["content"] or "").strip()
    bare = len(chat.response) == 1 and first.keys() <= {"role", "content"} and bool(content)
    return bare and text.startswith(prompt) and text[len(prompt) :].lstrip().startswith(content)


Form = Callable[[Sequence[Message]], list[Message]]
"""Messages in a form that some template asks for."""


def _fitting(tokenizer: PreTrainedTokenizerBase, chat: Conversation, generation_prompt: bool) -> tuple[Form, str]:
    """The text in the first form of the messages that the template takes whole, or else takes at all."""
    taken: tuple[Form, str] | None = None
    refused: BasiscopeError | None = None
    for form in _forms(chat):
        try:
            text = _chat(tokenizer, form(chat.messages), chat, generation_prompt)
        except BasiscopeError as error:
            refused = refused or error
            continue
        if REPR in text:
            continue
        if not any(_lacks(text, message["content"]) for message in chat.messages):
            return form, text
        taken = taken or (form, text)
    if taken is None:
        raise refused or BasiscopeError("there is no message")
    return taken


def _forms(chat: Conversation) -> Iterator[Form]:
    yield _as_text
    if any(tool_calls(message) for message in chat.messages):
        yield lambda messages: [_with_arguments(message, parsed=True) for message in _as_text(messages)]
        yield lambda messages: [_with_arguments(message, parsed=False) for message in _as_text(messages)]
    yield lambda messages: [
        message | {"content": [{"type": "text", "text": message["content"]}]} for message in _as_text(messages)
    ]


def _as_text(messages: Sequence[Message]) -> list[Message]:
    """Content is always a text, and reasoning under the names that templates look for, as of transformers 5.24."""
    found = []
    for message in messages:
        reasoning = _reasoning(message)
        names = {"thinking": reasoning} if reasoning and "thinking" not in message else {}
        names |= {"reasoning_content": reasoning} if reasoning else {}
        found.append({**message, **names, "content": message["content"] or ""})
    return found


def _with_arguments(message: Message, parsed: bool) -> Message:
    """The arguments of its calls as mappings, or as JSON; OpenAI's interface has these, most templates those."""
    if not tool_calls(message):
        return message
    calls = []
    for call in tool_calls(message):
        function = json_arguments(function_of(call))
        if not parsed:
            function["arguments"] = to_json(function.get("arguments"))
        calls.append({**call, "function": function} if function_of(call) is not call else function)
    return message | {"tool_calls": calls}


def json_arguments(function: Mapping[str, Any]) -> dict[str, Any]:
    """A call with its arguments as what they are the JSON of."""
    arguments = function.get("arguments")
    parsed = _parsed(arguments) if isinstance(arguments, str) else arguments
    return {**function, "arguments": arguments if parsed is None else parsed}


def _chat(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], chat: Conversation, generation_prompt: bool
) -> str:
    """The chat template over messages, with the tools and choices of their conversation."""
    if not messages:
        return ""
    own = _own_roles(tokenizer, str(tokenizer.chat_template))
    known = inspect.signature(tokenizer.apply_chat_template).parameters if chat.choices else {}
    choices = {name: value for name, value in chat.choices.items() if name not in known}
    told = [m | {"role": own[m["role"]]} if m["role"] in own else m for m in messages]
    options = {"tools": chat.tools or None, "add_generation_prompt": generation_prompt, **choices}
    return render_template(tokenizer, told, **options)


@lru_cache(maxsize=4)
def _own_roles(tokenizer: PreTrainedTokenizerBase, template: str) -> dict[str, str]:
    """Usual role -> the name that a template, or a special token such as <|observation|>, has for it, where it
    does not know the usual one."""
    asked = set(re.findall(r"role['\"\]]*\s*(?:==\s*|in\s*[\[(][^\])]*)['\"](\w+)['\"]", template))
    asked |= {named[1] for token in tokenizer.all_special_tokens if (named := re.fullmatch(r"<\|(\w+)\|>", token))}
    own = {}
    for usual, names in ROLE_NAMES.items():
        if usual not in asked and (name := next((name for name in names if name in asked), None)):
            own[usual] = name
    return own


# --- what came through ----------------------------------------------------------------------------------


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _lacks(text: str, part: Any) -> bool:
    """Whether a text lacks a part, its whitespace apart; written as JSON, it counts as there."""
    if not isinstance(part, str) or part.strip() in text:
        return False
    whole = _squeezed(text)
    return all(_squeezed(form) not in whole for form in (part, json.dumps(part)[1:-1], to_json(part)[1:-1]))


def _put_back(
    tokenizer: PreTrainedTokenizerBase, form: Form, chat: Conversation, text: str
) -> tuple[str, list[Note]]:
    """(text, notes) with what the template has left out of the response: it is rendered as a mark."""
    whole = {}
    for place, message in enumerate(chat.response, chat.split):
        reasoning = _reasoning(message)
        lost_thought = message["role"] == "assistant" and _lacks(text, reasoning)
        if message["role"] == "assistant" and (lost_thought or _lacks(text, message["content"])):
            mark = f"{MARK}{place}{MARK}"
            whole[place] = (mark, (thought(message) if lost_thought else "") + (message["content"] or ""))
    if not whole:
        return text, []
    marked = [m | {"content": whole[i][0]} if i in whole else m for i, m in enumerate(chat.messages)]
    written = _chat(tokenizer, form(marked), chat, generation_prompt=False)
    if any(written.count(mark) != 1 for mark, _ in whole.values()):
        return text, []
    for mark, body in whole.values():
        written = written.replace(mark, body)
    example = next(iter(whole.values()))[1]
    return written, [(PUT_BACK, example)]


def _response_start(
    tokenizer: PreTrainedTokenizerBase, form: Form, chat: Conversation, text: str, prompt: str
) -> int:
    """The character at which the response begins: where the text first parts from one with a mark in place of the
    response's first words; unless these begin earlier, as does a think block of its own that the template would
    write itself. The end of the text where nothing of the response is in it."""
    words = [part for message in chat.response for part in _words(message)]
    if all(_lacks(text, word) for word in words):
        return len(text)
    starts = []
    for first in _marked(chat.response[0]):
        with suppress(BasiscopeError):
            marked = form([*chat.before, first, *chat.response[1:]])
            starts.append(_shared(_chat(tokenizer, marked, chat, generation_prompt=False), text))
    content = (chat.response[0]["content"] or "").strip()
    start = _around(text, content, min(starts, default=_shared(prompt, text)))
    is_prompt = len(prompt) <= start and text.startswith(prompt) and not text[len(prompt) : start].strip()
    return len(prompt) if is_prompt else start


def _words(message: Message) -> Iterator[str]:
    """What a message says, part by part."""
    yield from filter(None, (_reasoning(message), message["content"]))
    for call in tool_calls(message):
        yield from _texts(function_of(call))


def _marked(message: Message) -> Iterator[Message]:
    """A message with a mark in place of its first words: its reasoning, its content, all of it."""
    if names := [name for name in REASONING if message.get(name)]:
        yield message | dict.fromkeys(names, MARK)
    yield message | {"content": MARK}
    yield {"role": message["role"], "content": MARK}


def _shared(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _around(text: str, content: str, place: int) -> int:
    """Where an occurrence of `content` begins that covers a place of the text, but for whitespace; else it."""
    squeezed = _squeezed(content)
    if not squeezed or text.startswith(content, place):
        return place
    shown = [i for i, character in enumerate(text) if not character.isspace()]
    found = _squeezed(text).find(squeezed, max(0, sum(i < place for i in shown) - len(squeezed)))
    return shown[found] if found >= 0 and shown[found] <= place else place


def _left_out(chat: Conversation, text: str) -> Iterator[Note]:
    """What the text has not of what its conversation has."""
    for message in chat.messages:
        if _lacks(text, message["content"]):
            yield "the chat template leaves out part of a message; --template plain keeps it", message["content"]
        reasoning = _reasoning(message)
        if _lacks(text, reasoning):
            yield "the chat template leaves out reasoning; --template plain keeps it", str(reasoning)
        for call in tool_calls(message):
            if any(_lacks(text, part) for part in _texts(function_of(call))):
                yield "the chat template leaves out tool calls; --template plain keeps them", said(message)
        if _lacks(text, message.get("name")):
            yield "the chat template leaves out names; --template plain keeps them", message["name"]
    if any(_lacks(text, name) for name in _tool_names(chat.tools)):
        yield "the chat template leaves out the tools; --template plain keeps them", to_json(chat.tools)


def _texts(function: Mapping[str, Any]) -> Iterator[str]:
    """The name of a call and the texts in its arguments."""
    arguments = function.get("arguments")
    pending = [
        function.get("name"),
        (_parsed(arguments) or arguments) if isinstance(arguments, str) else arguments,
    ]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            pending += value.values()
        elif isinstance(value, list):
            pending += value


def _tool_names(tools: Any) -> Iterator[str]:
    for tool in tools if isinstance(tools, list) else []:
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if isinstance(function, Mapping) and isinstance(function.get("name"), str):
            yield function["name"]
