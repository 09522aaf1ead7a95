"""Files and hub data sets -> examples: one text each, with prompt and response spans and all columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from core.chat_template import check_template
from core.chats import (
    BESIDE,
    Conversation,
    Note,
    Turns,
    are_messages,
    as_turns,
    of_turns,
    paragraphs,
    plain,
    read_conversation,
    render,
)
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


@dataclass(frozen=True)
class Columns:
    """Which columns hold the text: `text`, or `prompt` with an optional `response`, or chat `messages`. `input` is
    what a prompt is about (Alpaca's instruction has one). Prompt and response may be messages, too. A nested field
    is written as a dotted path."""

    text: str | None = None
    prompt: str | None = None
    response: str | None = None
    messages: str | None = None
    input: str | None = None

    def __post_init__(self) -> None:
        ways = [name for name in ("text", "prompt", "messages") if getattr(self, name)]
        if len(ways) != 1 or ((self.response or self.input) and not self.prompt):
            raise BasiscopeError(
                "Columns: give one of --text, --prompt (with or without --input and --response) and --messages."
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
        missing = {column for column in missing if not _holds(row, column, columns)}
        if not missing:
            return
    _refuse_missing(source, sorted(missing))


def _holds(row: Row, column: str, columns: Columns) -> bool:
    """Whether a row has a value in the column; an input may be empty."""
    return field_value(row, column) is not None or (column == columns.input and column in column_paths([row]))


def _refuse_missing(source: DataSource, missing: list[str]) -> None:
    if missing and (found := column_paths(preview_rows(source))):
        if any(missing[0] in column_paths([row]) for _, row in read_rows(source, ReadReport())):
            raise BasiscopeError(
                f"Data {source.path}: the column {missing[0]!r} is empty in every row that was read."
            )
        raise BasiscopeError(
            f"Data {source.path}: no row has the column {missing[0]!r}. Its columns: {', '.join(found)}."
        )


def resolve_template(
    template: str, columns: Columns, tokenizer: PreTrainedTokenizerBase, source: DataSource | None = None
) -> str:
    """`auto` becomes `chat` for messages where the tokenizer has a chat template, else `plain`. The prompts of a
    `source` are messages where its first is."""
    if template not in TEMPLATES:
        raise BasiscopeError(f"Template {template!r} is not one of {', '.join(TEMPLATES)}.")
    has_chat = bool(getattr(tokenizer, "chat_template", None))
    if template == "auto":
        asks = columns.messages or _asks_in_messages(source, columns)
        template = "chat" if has_chat and asks else "plain"
    if template.startswith("chat") and not has_chat:
        raise BasiscopeError(
            f"Template {template!r}: this model's tokenizer has no chat template; use --template plain."
        )
    if template != "plain":
        check_template(tokenizer)
    return template


def _asks_in_messages(source: DataSource | None, columns: Columns) -> bool:
    if source is None or columns.prompt is None:
        return False
    prompts = (field_value(row, columns.prompt) for row in preview_rows(source))
    return are_messages(next((prompt for prompt in prompts if prompt is not None), None))


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
    named = columns.named()
    for number, row in read_rows(source, report):
        values = {role: field_value(row, column) for role, column in named.items()}
        seen.update(role for role, column in named.items() if role not in seen and _holds(row, column, columns))
        problem = _unusable(values)
        if problem:
            report.count(f"left out, {problem}", number)
            continue
        try:
            example, notes = _render(number, row, named, template, tokenizer)
        except BasiscopeError as error:
            report.count(f"left out, {error}", number)
            continue
        if not example.text.strip():
            report.count("left out, empty text", number)
            continue
        usable += 1
        for note, shown in dict([*notes, *_unused(row, named)]).items():
            report.count(note, number, shown)
        yield example
    _refuse_missing(source, [column for role, column in columns.named().items() if role not in seen])
    if not usable:
        problems = "; ".join(report.sentences()) or "it is empty"
        raise BasiscopeError(f"Data {source.path}: no usable example in {report.rows:,} rows ({problems}).")


def _unusable(values: Mapping[str, Any]) -> str | None:
    for role, value in values.items():
        if role == "input":
            continue
        if value is None or value != value:
            return f"no {role}"
        if role in ("prompt", "response") and are_messages(value):
            continue
        if role != "messages" and isinstance(value, list | Mapping):
            return f"{role} is not text" + ("; --messages reads it" if are_messages(value) else "")
    return None


def _render(
    number: int, row: Row, columns: Mapping[str, str], template: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[Example, tuple[Note, ...]]:
    """A row's example, and what of the row is not as it came in."""
    chat = conversation_of(row, columns)
    if chat is None and template == "plain":
        return _of_texts(number, row, columns), ()
    if chat is None:
        values = {role: str(field_value(row, column)) for role, column in columns.items()}
        chat = read_conversation(values | {"prompt": prompt_of(row, columns)}, {})
    texts = _alone(chat) if template == "plain" and "messages" not in columns else None
    if texts is not None:
        return replace(_of_pair(*texts), example_id=number, columns=row), chat.notes
    made = plain(chat) if template == "plain" else render(chat, tokenizer, prompt_only=template == "chat-prompt")
    is_text = "messages" not in columns and not in_messages(row, columns)
    shown = prompt_of(row, columns) if is_text and "prompt" in columns else made.prompt
    example = Example(number, made.text, shown, chat.said, made.start, template == "plain", row)
    return example, (*chat.notes, *made.notes)


def _of_texts(number: int, row: Row, columns: Mapping[str, str]) -> Example:
    if "text" in columns:
        return Example(number, str(field_value(row, columns["text"])), None, None, None, True, row)
    response = str(field_value(row, columns["response"])) if "response" in columns else None
    return replace(_of_pair(prompt_of(row, columns), response), example_id=number, columns=row)


def _of_pair(prompt: str, response: str | None) -> Example:
    if response is None:
        return Example(0, prompt, prompt, None, None, True, {})
    return Example(0, f"{prompt}\n{response}", prompt, response, len(prompt) + 1, True, {})


def _alone(chat: Conversation) -> tuple[str, str | None] | None:
    """A single question and its answer, where they are nothing else than texts."""
    bare = all(message.keys() == {"role", "content"} for message in chat.messages) and not chat.tools
    roles = [message["role"] for message in chat.messages]
    if not bare or roles not in (["user"], ["user", "assistant"]):
        return None
    return chat.messages[0]["content"], chat.said


def prompt_of(row: Row, columns: Mapping[str, str]) -> str:
    """A row's prompt as text, its input below it."""
    prompt = field_value(row, columns.get("prompt") or columns["text"])
    about = field_value(row, columns["input"]) if "input" in columns else None
    if about is None or about != about or not str(about).strip():
        return str(prompt)
    return f"{prompt}\n{about}"


def in_messages(row: Row, columns: Mapping[str, str]) -> bool:
    """Whether the row's prompt or response is messages."""
    return any(are_messages(field_value(row, columns[role])) for role in ("prompt", "response") if role in columns)


def conversation_of(row: Row, columns: Mapping[str, str]) -> Conversation | None:
    """The conversation that a row holds, by these columns (role -> column); None where it holds texts.

    Raises BasiscopeError where the messages are none.
    """
    if "messages" not in columns and not in_messages(row, columns):
        return None
    values = {role: field_value(row, column) for role, column in columns.items()}
    if "prompt" in columns and not are_messages(values["prompt"]):
        values["prompt"] = prompt_of(row, columns)
    path = columns.get("messages") or columns["prompt"]
    parent = path.rpartition(".")[0] if path not in row else ""
    beside = {name: field_value(row, f"{parent}.{name}" if parent else name) for name in BESIDE}
    return read_conversation(values, beside)


BELONGING: dict[str, dict[str, tuple[str, ...]]] = {
    "prompt": {"instruction": ("input", "context", "system", "history"), "question": ("context",)},
    "response": {"chosen": ("rejected",)},
}
"""Role -> usual name of its column -> those of columns that belong to it, in Alpaca's, Dolly's and TRL's data."""


def _unused(row: Row, columns: Mapping[str, str]) -> Iterator[Note]:
    """What belongs to the columns in use, by their usual names in any case, and is not read."""
    for role, usual in BELONGING.items():
        others = usual.get(columns.get(role, "").lower(), ())
        for name in [name for name in row if name.lower() in others] if others else ():
            is_read = name in columns.values() or (name == "system" and in_messages(row, columns))
            if row[name] and not is_read:
                remedy = f"; --input {name} reads it" if name.lower() in ("input", "context") else ""
                yield f"the column {name} is not read{remedy}", str(row[name])


def question_of(row: Row, columns: Mapping[str, str]) -> tuple[str, Turns] | None:
    """(text, turns before it) of what a row asks: its prompt, or the last message of a user; None where there is
    none."""
    try:
        chat = conversation_of(row, columns)
    except BasiscopeError:
        return None
    if chat is None:
        value = field_value(row, columns.get("prompt") or columns["text"])
        missing = value is None or isinstance(value, list | Mapping) or value != value
        return None if missing else (prompt_of(row, columns), ())
    last = max((i for i, message in enumerate(chat.before) if message["role"] == "user"), default=None)
    return None if last is None else (chat.messages[last]["content"] or "", as_turns(chat, last))


def prompt_text(
    prompt: str,
    columns: Mapping[str, str],
    template: str,
    tokenizer: PreTrainedTokenizerBase,
    before: Turns = (),
) -> tuple[str, bool]:
    """A prompt, after the messages `before` it, as it stands before the response in the examples with these
    columns (role -> column), and whether the tokenizer's special tokens are to be added to it."""
    chat = of_turns((*before, ("user", prompt)))
    if template != "plain":
        return render(chat, tokenizer, prompt_only=True).text, False
    if "messages" in columns or before:
        return f"{paragraphs(chat.messages, chat.tools)}\n\nAssistant: ", True
    return (prompt + "\n" if "response" in columns else prompt), True


# --- tokens ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenizedText:
    """Token ids of one text after the cut, and the first token of its response (None without one)."""

    ids: list[int]
    response_token: int | None
    was_cut: bool


def encode(
    tokenizer: PreTrainedTokenizerBase, text: str | list[str], special_tokens: bool, **options: Any
) -> Mapping[str, Any]:
    """What the tokenizer makes of one or several texts. Raises BasiscopeError where it cannot."""
    try:
        return tokenizer(
            text, add_special_tokens=special_tokens, return_attention_mask=False, verbose=False, **options
        )
    except Exception as error:  # it is what its files say
        raise BasiscopeError(
            f"Model {tokenizer.name_or_path}: its tokenizer fails ({type(error).__name__}: {error}); see its "
            "tokenizer.json and tokenizer_config.json."
        ) from error


def tokenize(
    examples: list[Example], tokenizer: PreTrainedTokenizerBase, max_tokens: int, spans: bool
) -> list[TokenizedText]:
    """Tokenise as the model's tokenizer does by default, chat-templated text without special tokens of its
    own; cut at `max_tokens`. A BOS or EOS token that the text brings itself stands once. `spans` finds the
    response's first token: the first that ends after its start.
    """
    if spans and not tokenizer.is_fast:
        raise BasiscopeError("Pooling over the response needs a fast tokenizer; use --pooling mean.")
    texts = [example.text for example in examples]
    encoded = encode(tokenizer, texts, examples[0].special_tokens, return_offsets_mapping=spans)
    result = []
    ends = _added_ends(tokenizer, examples[0].special_tokens)
    for i, example in enumerate(examples):
        kept = _once(encoded["input_ids"][i], *ends)
        ids = encoded["input_ids"][i][kept]
        first = None
        if spans and example.response_start is not None:
            offsets = encoded["offset_mapping"][i][kept]
            first = next((t for t, (_, end) in enumerate(offsets) if end > example.response_start), len(ids))
        result.append(TokenizedText(ids[:max_tokens], first, len(ids) > max_tokens))
    return result


def _added_ends(tokenizer: PreTrainedTokenizerBase, special_tokens: bool) -> tuple[int | None, int | None]:
    """The BOS and the EOS token that a tokenizer adds to a text; None for one that it does not."""
    if not special_tokens:
        return None, None
    bare, added = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    if bare == added:
        return None, None
    adds_bos = added[:1] == [tokenizer.bos_token_id] != bare[:1]
    adds_eos = added[-1:] == [tokenizer.eos_token_id] != bare[-1:]
    return (tokenizer.bos_token_id if adds_bos else None, tokenizer.eos_token_id if adds_eos else None)


def _once(ids: list[int], bos: int | None, eos: int | None) -> slice:
    """Without the BOS or EOS token that a tokenizer has added to a text with its own."""
    start = int(len(ids) > 1 and ids[0] == ids[1] == bos)
    end = int(len(ids) > start + 1 and ids[-1] == ids[-2] == eos)
    return slice(start, len(ids) - end)


def token_ids(text: str, tokenizer: PreTrainedTokenizerBase, special_tokens: bool) -> list[int]:
    """The tokens of one text, as `tokenize` makes them."""
    ids = list(encode(tokenizer, text, special_tokens)["input_ids"])
    return ids[_once(ids, *_added_ends(tokenizer, special_tokens))]


# --- guesses --------------------------------------------------------------------------------------------

PROMPT_NAMES = ("prompt", "question", "problem", "instruction", "query", "input")
RESPONSE_NAMES = ("response", "completion", "answer", "solution", "output", "chosen")


def guess_columns(paths: list[str]) -> Columns:
    """The likely roles of a data set's columns, by their usual names; else the first column as the text."""
    if messages := next((name for name in ("messages", "conversations") if name in paths), None):
        return Columns(messages=messages)
    prompt = next((name for name in PROMPT_NAMES if name in paths), None)
    response = next((name for name in RESPONSE_NAMES if name in paths), None)
    if prompt:
        about = "input" if prompt == "instruction" and "input" in paths else None
        return Columns(prompt=prompt, response=response, input=about)
    return Columns(text="text" if "text" in paths else paths[0])
