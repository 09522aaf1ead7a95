"""Files and hub data sets -> examples: one text each, with prompt and response spans and all columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.errors import BasiscopeError
from core.source import (
    RESERVED,
    DataSource,
    ReadReport,
    Row,
    as_kind,
    as_numbers,
    column_kinds,
    data_files,
    data_fingerprint,
    is_local,
    kept_columns,
    preview_rows,
    read_rows,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "RESERVED",
    "as_kind",
    "as_numbers",
    "column_kinds",
    "data_files",
    "data_fingerprint",
    "is_local",
    "kept_columns",
]
"""Of what reads rows, what others take from here."""

TEMPLATES = ("auto", "plain", "chat", "chat-prompt")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}

Turns = tuple[tuple[str, str], ...]
"""Messages of a conversation as (role, content)."""


@dataclass(frozen=True)
class Columns:
    """Which columns hold the text: `text`, or `prompt` with an optional `response`, or chat `messages`.
    A nested field is written as a dotted path."""

    text: str | None = None
    prompt: str | None = None
    response: str | None = None
    messages: str | None = None

    def __post_init__(self) -> None:
        ways = [name for name in ("text", "prompt", "messages") if getattr(self, name)]
        if len(ways) != 1 or (self.response and not self.prompt):
            raise BasiscopeError(
                "Columns: give one of --text, --prompt (with or without --response) and --messages."
            )

    def named(self) -> dict[str, str]:
        """Role -> column, for the roles in use."""
        return {role: column for role, column in vars(self).items() if column}


@dataclass(frozen=True)
class Example:
    """One text. `example_id` is its row number in the source, from 0; `response_start` the character of
    `text` at which the response begins; `special_tokens` whether the tokenizer adds its own around it."""

    example_id: int
    text: str
    prompt: str | None
    response: str | None
    response_start: int | None
    special_tokens: bool
    columns: Row


# --- rows to examples -----------------------------------------------------------------------------------


def field_value(row: Row, path: str) -> Any:
    """The value under a column name or a dotted path (`solution.steps.0`), or None."""
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def cell_text(row: Row, column: str) -> str | None:
    """A cell as text: 27.0 as 27, several answers after one another, nothing for what is neither."""
    value = field_value(row, column)
    if isinstance(value, list):
        return ", ".join(str(part).strip() for part in value) or None
    if value is None or value != value or isinstance(value, Mapping):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def column_paths(rows: Iterable[Row]) -> list[str]:
    """All columns of `rows` in order of appearance, nested fields as dotted paths after their parent."""
    paths: dict[str, None] = {}

    def add(prefix: str, value: Any) -> None:
        paths[prefix] = None
        if isinstance(value, Mapping):
            for key, inner in value.items():
                add(f"{prefix}.{key}", inner)

    for row in rows:
        for key, value in row.items():
            add(key, value)
    return list(paths)


def check_columns(source: DataSource, columns: Columns) -> None:
    """Raises BasiscopeError where a named column of a local source is in no row at all. Reads no further than
    to the first row that has them."""
    missing = set(columns.named().values())
    if not is_local(source.path):
        return
    for _, row in read_rows(source, ReadReport()):
        missing = {column for column in missing if field_value(row, column) is None}
        if not missing:
            return
    _refuse_missing(source, sorted(missing))


def _refuse_missing(source: DataSource, missing: list[str]) -> None:
    if missing and (found := column_paths(preview_rows(source))):
        if any(missing[0] in column_paths([row]) for _, row in read_rows(source, ReadReport())):
            raise BasiscopeError(
                f"Data {source.path}: the column {missing[0]!r} is empty in every row that was read."
            )
        raise BasiscopeError(
            f"Data {source.path}: no row has the column {missing[0]!r}. Its columns: {', '.join(found)}."
        )


def resolve_template(template: str, columns: Columns, tokenizer: PreTrainedTokenizerBase) -> str:
    """`auto` becomes `chat` for messages where the tokenizer has a chat template, else `plain`."""
    if template not in TEMPLATES:
        raise BasiscopeError(f"Template {template!r} is not one of {', '.join(TEMPLATES)}.")
    has_chat = bool(getattr(tokenizer, "chat_template", None))
    if template == "auto":
        return "chat" if columns.messages and has_chat else "plain"
    if template.startswith("chat") and not has_chat:
        raise BasiscopeError(
            f"Template {template!r}: this model's tokenizer has no chat template; use --template plain."
        )
    return template


def read_examples(
    source: DataSource,
    columns: Columns,
    template: str,
    tokenizer: PreTrainedTokenizerBase,
    report: ReadReport,
) -> Iterator[Example]:
    """Every row with usable text as an Example; rows without are counted in `report`.

    `plain` writes prompt and response as `prompt + "\\n" + response`, and messages as
    `Role: content` paragraphs; `chat` renders the tokenizer's chat template, `chat-prompt` only the prompt
    with the generation prompt appended (Safety recipe).

    Raises BasiscopeError where a named column is in no row at all.
    """
    seen: set[str] = set()
    usable = 0
    for number, row in read_rows(source, report):
        values = {role: field_value(row, column) for role, column in columns.named().items()}
        seen.update(role for role, value in values.items() if value is not None)
        problem = _unusable(values)
        if problem:
            report.count(f"left out, {problem}", number)
            continue
        try:
            example = _render(number, row, values, template, tokenizer)
        except BasiscopeError as error:
            report.count(f"left out, {error}", number)
            continue
        if not example.text.strip():
            report.count("left out, empty text", number)
            continue
        usable += 1
        yield example
    _refuse_missing(source, [column for role, column in columns.named().items() if role not in seen])
    if not usable:
        problems = "; ".join(report.sentences()) or "it is empty"
        raise BasiscopeError(f"Data {source.path}: no usable example in {report.rows:,} rows ({problems}).")


def _unusable(values: Mapping[str, Any]) -> str | None:
    for role, value in values.items():
        if value is None or value != value:
            return f"no {role}"
        if role == "messages":
            if not (isinstance(value, list) and value and all(map(_message, value))):
                return "messages are not a list of {role, content} or {from, value}"
        elif isinstance(value, list | Mapping):
            return f"{role} is not text"
    return None


def _message(item: Any) -> tuple[str, str] | None:
    """(role, content) of a message, as `{role, content}` or in ShareGPT's `{from, value}`; None if it is none."""
    if not isinstance(item, Mapping):
        return None
    role, content = item.get("role", item.get("from")), item.get("content", item.get("value"))
    if not (isinstance(role, str) and isinstance(content, str)):
        return None
    return SHAREGPT_ROLES.get(role, role), content


def _render(
    number: int, row: Row, values: Mapping[str, Any], template: str, tokenizer: PreTrainedTokenizerBase
) -> Example:
    if "text" in values and template == "plain":
        return Example(number, str(values["text"]), None, None, None, True, row)
    messages = _messages(values)
    answered = messages[-1]["role"] == "assistant"
    before, response = (messages[:-1], messages[-1]["content"]) if answered else (messages, None)
    if template == "plain":
        prompt, text = _plain(values, before, response)
    else:
        prompt = _chat(tokenizer, before, generation_prompt=True)
        text = prompt
        if template == "chat" and response is not None:
            text = _chat(tokenizer, messages, generation_prompt=False)
    start = None
    if response is not None and template != "chat-prompt":
        found = text.rfind(response.strip())  # a template may trim it, or write another generation prompt
        start = len(prompt) if prompt and text.startswith(prompt) else found if found >= 0 else None
    shown_prompt = str(values["prompt"]) if "prompt" in values else prompt
    return Example(number, text, shown_prompt, response, start, template == "plain", row)


def prompt_text(
    prompt: str,
    columns: Mapping[str, str],
    template: str,
    tokenizer: PreTrainedTokenizerBase,
    before: Turns = (),
) -> tuple[str, bool]:
    """A prompt, after the messages `before` it, as it stands before the response in the examples with these
    columns (role -> column), and whether the tokenizer's special tokens are to be added to it."""
    turns = (*before, ("user", prompt))
    messages = [{"role": role, "content": content} for role, content in turns]
    if template != "plain":
        return _chat(tokenizer, messages, generation_prompt=True), False
    if "messages" in columns or before:
        return _plain({"messages": messages}, messages, "")[0], True
    return (prompt + "\n" if "response" in columns else prompt), True


def _messages(values: Mapping[str, Any]) -> list[dict[str, str]]:
    if "messages" in values:
        pairs = (_message(item) for item in values["messages"])
        return [{"role": pair[0], "content": pair[1]} for pair in pairs if pair]
    messages = [{"role": "user", "content": str(values.get("prompt", values.get("text")))}]
    if "response" in values:
        messages.append({"role": "assistant", "content": str(values["response"])})
    return messages


def as_messages(value: Any) -> list[dict[str, str]] | None:
    """A messages column as role and content, or None where it is no list of messages."""
    pairs = [_message(item) for item in value] if isinstance(value, list) else []
    return [{"role": role, "content": content} for role, content in filter(None, pairs)] or None


def _plain(values: Mapping[str, Any], before: list[dict[str, str]], response: str | None) -> tuple[str, str]:
    if "messages" not in values:
        prompt = str(values["prompt"])
        return (prompt, prompt) if response is None else (prompt + "\n", f"{prompt}\n{response}")
    prompt = "\n\n".join(f"{item['role'].capitalize()}: {item['content']}" for item in before)
    if response is None:
        return prompt, prompt
    prompt = f"{prompt}\n\nAssistant: " if prompt else "Assistant: "
    return prompt, prompt + response


def _chat(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], generation_prompt: bool) -> str:
    if not messages:
        return ""
    from jinja2 import TemplateError

    try:
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)
        )
    except (TemplateError, TypeError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise BasiscopeError(
            f"the chat template refuses messages with the roles {roles} ({error}); --template plain takes them"
        ) from error


# --- tokens ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenizedText:
    """Token ids of one text after the cut, and the first token of its response (None without one)."""

    ids: list[int]
    response_token: int | None
    was_cut: bool


def tokenize(
    examples: list[Example], tokenizer: PreTrainedTokenizerBase, max_tokens: int, spans: bool
) -> list[TokenizedText]:
    """Tokenise as the model's tokenizer does by default, chat-templated text without special tokens of its
    own; cut at `max_tokens`. `spans` finds the response's first token: the first that ends after its start.
    """
    if spans and not tokenizer.is_fast:
        raise BasiscopeError("Pooling over the response needs a fast tokenizer; use --pooling mean.")
    encoded = tokenizer(
        [example.text for example in examples],
        add_special_tokens=examples[0].special_tokens,
        return_offsets_mapping=spans,
        return_attention_mask=False,
        verbose=False,
    )
    result = []
    for i, example in enumerate(examples):
        ids = encoded["input_ids"][i]
        first = None
        if spans and example.response_start is not None:
            offsets = encoded["offset_mapping"][i]
            first = next((t for t, (_, end) in enumerate(offsets) if end > example.response_start), len(ids))
        result.append(TokenizedText(ids[:max_tokens], first, len(ids) > max_tokens))
    return result


# --- guesses --------------------------------------------------------------------------------------------

PROMPT_NAMES = ("prompt", "question", "problem", "instruction", "query", "input")
RESPONSE_NAMES = ("response", "completion", "answer", "solution", "output")


def guess_columns(paths: list[str]) -> Columns:
    """The likely roles of a data set's columns, by their usual names; else the first column as the text."""
    if messages := next((name for name in ("messages", "conversations") if name in paths), None):
        return Columns(messages=messages)
    prompt = next((name for name in PROMPT_NAMES if name in paths), None)
    response = next((name for name in RESPONSE_NAMES if name in paths), None)
    if prompt:
        return Columns(prompt=prompt, response=response)
    return Columns(text="text" if "text" in paths else paths[0])
