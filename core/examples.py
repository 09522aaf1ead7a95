"""Files and hub data sets -> examples: one text each, with prompt and response spans and all columns."""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import io
import json
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date, time
from decimal import Decimal
from functools import lru_cache
from itertools import count as natural_numbers
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.chat_template import check_template, render
from core.errors import BasiscopeError
from core.paths import is_open_folder, is_seen_file, is_there, typed_path

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILE_TYPES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
TEMPLATES = ("auto", "plain", "chat", "chat-prompt")
RESERVED = ("example_id", "text", "prompt", "response", "n_tokens")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
EXTRA = "_extra"
"""The column of a CSV row's fields beyond the header."""
BATCH = 1_000
BLANK = "left out, a blank line"
LONGEST_HUB_ID = 200
"""An owner and a name of at most 96 characters each."""

Row = Mapping[str, Any]
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
class DataSource:
    """A file, a folder of files or a hub data set (with config, split and revision), up to `limit` rows."""

    path: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise BasiscopeError(f"Limit {self.limit}: it must be at least 1.")


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


@dataclass
class ReadReport:
    """What reading met: rows read, and per problem how many rows and the first few row numbers."""

    rows: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    first_rows: dict[str, list[int]] = field(default_factory=dict)

    def count(self, problem: str, row: int) -> None:
        self.counts[problem] += 1
        if self.counts[problem] <= 5:
            self.first_rows.setdefault(problem, []).append(row)

    def sentences(self) -> list[str]:
        """One line per problem, such as `3 rows: empty text (rows 4, 9, 17)`."""
        lines = []
        for problem, count in self.counts.most_common():
            rows = ", ".join(map(str, self.first_rows[problem]))
            more = ", ..." if count > len(self.first_rows[problem]) else ""
            noun = "row" if count == 1 else "rows"
            lines.append(f"{count:,} {noun}: {problem} ({noun} {rows}{more})")
        return lines


# --- reading rows ---------------------------------------------------------------------------------------


def data_files(path: str) -> list[Path]:
    """The data files that `path` means: itself, or those of a folder that can be looked into, by name.

    Raises BasiscopeError where it does not exist, cannot be read or holds no such file.
    """
    root = typed_path(path)
    if is_seen_file(root):
        if _suffix(root) not in FILE_TYPES:
            raise BasiscopeError(f"Data {path}: {root.suffix or 'no ending'} is none of {_types()}.")
        return [root]
    if is_open_folder(root):
        found = (file for file in root.rglob("*") if _suffix(file) in FILE_TYPES and is_seen_file(file))
        if files := sorted(file for file in found if not _is_hidden(file.relative_to(root))):
            return files
        raise BasiscopeError(f"Data {path}: the folder holds none of {_types()}.")
    raise BasiscopeError(f"Data: there is no file or folder {path} that can be read.")


def _types() -> str:
    return ", ".join(FILE_TYPES) + " (or one of these with .gz)"


def _suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def is_local(path: str) -> bool:
    """Whether `path` means files here rather than a hub id: it exists, is written as a path, or is longer than
    any hub id."""
    written = path.startswith(("/", ".", "~")) or _suffix(Path(path)) in FILE_TYPES
    return written or len(path) > LONGEST_HUB_ID or is_there(Path(path))


def data_fingerprint(source: DataSource) -> str:
    """SHA-256 over the contents of the source's files and over what else decides how they are read: a
    file's type, its name within a folder, the split. It does not matter where the files lie."""
    if is_local(source.path):
        named = [(file, _place(source, file) or _suffix(file)) for file in data_files(source.path)]
    else:
        named = [(Path(entry["filename"]), str(source.split)) for entry in _load_hub(source).cache_files]
    digest = hashlib.sha256()
    for file, name in named:
        try:
            with file.open("rb") as content:
                digest.update(f"{hashlib.file_digest(content, 'sha256').hexdigest()} {name}\n".encode())
        except OSError as error:
            raise BasiscopeError(f"Data {file}: it cannot be read ({error}).") from error
    return digest.hexdigest()


def _place(source: DataSource, file: Path) -> str | None:
    """The file's name within the source's folder, or None where the source is the file itself."""
    root = Path(source.path).expanduser()
    return str(file.relative_to(root)) if root.is_dir() else None


def read_rows(source: DataSource, report: ReadReport) -> Iterator[tuple[int, Row]]:
    """(row number, row) for every row that can be parsed; the others are counted in `report`.

    Row numbers run over all rows of all files. A folder's rows carry their file's name as `source_file`
    where they have no such column of their own. Raises BasiscopeError for a file that cannot be read.
    """
    numbered = _local_rows(source, report) if is_local(source.path) else enumerate(_load_hub(source))
    for number, row in islice(numbered, source.limit):
        report.rows = number + 1
        if row is not None:
            yield number, row


def _local_rows(source: DataSource, report: ReadReport) -> Iterator[tuple[int, Row | None]]:
    number = 0
    for file in data_files(source.path):
        place = _place(source, file)
        extra = {"source_file": place} if place else {}
        try:
            if place and _suffix(file) == ".json" and not _holds_array(file):
                report.count(f"file {place} left out, it holds no JSON array", number)
                continue
            for row, problems in _READERS[_suffix(file)](file):
                for problem in problems:
                    report.count(problem, number)
                yield number, None if row is None else {**extra, **row}
                number += 1
        except (OSError, EOFError, zlib.error) as error:
            raise BasiscopeError(f"Data {file}: it cannot be read ({error}).") from error


def _holds_array(file: Path) -> bool:
    """Whether a JSON file begins as an array does; a folder may hold others beside the data."""
    with _open(file) as content:
        return content.read(1_000).lstrip(codecs.BOM_UTF8 + b" \t\r\n").startswith(b"[")


Parsed = Iterator[tuple[Row | None, tuple[str, ...]]]


def _open(file: Path) -> io.BufferedIOBase:
    return gzip.open(file) if file.suffix == ".gz" else file.open("rb")


def _decode(raw: bytes) -> tuple[str, tuple[str, ...]]:
    try:
        return raw.decode("utf-8"), ()
    except UnicodeDecodeError:
        return raw.decode("utf-8", errors="replace"), ("not UTF-8, undecodable bytes replaced",)


def _read_jsonl(file: Path) -> Parsed:
    with _open(file) as content:
        for raw in _lines(file, content):
            if raw.strip():
                yield _object(*_decode(raw))
            else:
                yield None, (BLANK,)


def _object(text: str, problems: tuple[str, ...]) -> tuple[Row | None, tuple[str, ...]]:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return None, (*problems, "left out, not valid JSON")
    if not isinstance(row, dict):
        return None, (*problems, "left out, not a JSON object")
    return _without_surrogates(row, problems) if r"\ud" in text.lower() else (row, problems)


def _without_surrogates(row: Row, problems: tuple[str, ...]) -> tuple[Row, tuple[str, ...]]:
    """Replace halves of surrogate pairs, which JSON can escape but neither tokenizer nor Parquet takes."""
    text = json.dumps(row, ensure_ascii=False)
    clean = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if clean == text:
        return row, problems
    return json.loads(clean), (*problems, "not Unicode, halves of surrogate pairs replaced")


def _read_json(file: Path) -> Parsed:
    with _open(file) as content:
        raw = content.read()
        _refuse_utf16(file, raw)
        text, problems = _decode(raw)
    escaped = r"\ud" in text.lower()
    try:
        rows = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise BasiscopeError(
            f"Data {file}: not a valid JSON array ({error}). One object per line belongs in a .jsonl file."
        ) from error
    if not isinstance(rows, list):
        raise BasiscopeError(f"Data {file}: holds a JSON {type(rows).__name__}, expected an array of objects.")
    for row in rows:
        if isinstance(row, dict):
            yield _without_surrogates(row, problems) if escaped else (row, problems)
        else:
            yield None, (*problems, "left out, not a JSON object")


def _read_csv(file: Path) -> Parsed:
    csv.field_size_limit(sys.maxsize)
    with _open(file) as content:
        record: list[bytes] = []
        delimiter = "\t" if _suffix(file) == ".tsv" else ","
        reader = csv.reader(_record_lines(file, content, record), delimiter=delimiter)
        try:
            header: list[str] = []
            for cells in reader:
                if not record[-1]:
                    start = reader.line_num - len(record) + 2
                    raise BasiscopeError(f"Data {file}, line {start}: a quote is opened there and never closed.")
                record.clear()
                if header:
                    yield _cells_as_row(header, cells)
                else:
                    header = _distinct(cells)
        except csv.Error as error:
            raise BasiscopeError(f"Data {file}, line {reader.line_num}: not valid CSV ({error}).") from error


def _record_lines(file: Path, content: Iterable[bytes], record: list[bytes]) -> Iterator[str]:
    """The file's lines, each put into `record`, too. A parser that has read a whole record asks for no more, so
    the empty line put there after the last tells that the last record is open to the end."""
    for raw in _lines(file, content):
        record.append(raw)
        yield _decode(raw)[0]
    record.append(b"")


def _cells_as_row(header: list[str], cells: list[str]) -> tuple[Row | None, tuple[str, ...]]:
    if not cells:
        return None, (BLANK,)
    problems = []
    if len(cells) != len(header):
        problems.append("ragged, more or fewer fields than the header")
    if any("\ufffd" in cell for cell in cells):
        problems.append("not UTF-8, undecodable bytes replaced")
    row: dict[str, Any] = dict(zip_longest(header, cells[: len(header)]))
    return row | ({EXTRA: cells[len(header) :]} if len(cells) > len(header) else {}), tuple(problems)


def _lines(file: Path, content: Iterable[bytes]) -> Iterator[bytes]:
    for i, raw in enumerate(content):
        if i == 0:
            _refuse_utf16(file, raw)
        yield raw.removeprefix(codecs.BOM_UTF8) if i == 0 else raw


def _refuse_utf16(file: Path, start: bytes) -> None:
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise BasiscopeError(f"Data {file}: it is UTF-16; save it as UTF-8.")


def _distinct(names: Iterable[str]) -> list[str]:
    """Column names, the second `a` as `a.1`, as pandas does."""
    found: list[str] = []
    for name in names:
        numbered = (f"{name}.{i}" for i in natural_numbers(1))
        found.append(name if name not in found else next(other for other in numbered if other not in found))
    return found


def _read_parquet(file: Path) -> Parsed:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(batch_size=BATCH):
                for row in batch.to_pylist():
                    yield row, ()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise BasiscopeError(f"Data {file}: not a readable Parquet file ({reason}).") from error


_READERS = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}


@contextmanager
def _hub_sentences(source: DataSource) -> Iterator[None]:
    """Turns what the hub and its library raise into a BasiscopeError."""
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    try:
        yield
    except DatasetNotFoundError as error:
        raise BasiscopeError(
            f"Data {source.path}: no such file here, and no such data set on the hub (or it needs a login)."
        ) from error
    except (ValueError, DatasetsError) as error:
        raise BasiscopeError(f"Data {source.path}: {str(error).splitlines()[0]}") from error
    except (OSError, RuntimeError) as error:
        raise BasiscopeError(
            f"Data {source.path} is no file here, not in the local cache, and the hub cannot be reached."
        ) from error


@lru_cache(maxsize=2)
def _load_hub(source: DataSource, streaming: bool = False) -> Any:
    from datasets import DatasetDict, IterableDatasetDict, load_dataset

    with _hub_sentences(source):
        data = load_dataset(
            source.path, source.config, split=source.split, revision=source.revision, streaming=streaming
        )
    if isinstance(data, DatasetDict | IterableDatasetDict):
        raise BasiscopeError(f"Data {source.path}: choose a split with --split: {', '.join(data)}.")
    return data


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


def preview_rows(source: DataSource, n: int = 5) -> list[Row]:
    """The first `n` rows that can be parsed. Of a hub data set only these are fetched."""
    if not is_local(source.path):
        whole = replace(source, split=source.split and re.split(r"[\[+]", source.split)[0])
        with _hub_sentences(source):
            return list(_load_hub(whole, streaming=True).take(n))
    limited = replace(source, limit=50 * n)
    return [row for (_, row), _ in zip(read_rows(limited, ReadReport()), range(n), strict=False)]


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
        template = "chat" if columns.messages and has_chat else "plain"
    if template.startswith("chat") and not has_chat:
        raise BasiscopeError(
            f"Template {template!r}: this model's tokenizer has no chat template; use --template plain."
        )
    if template != "plain":
        check_template(tokenizer)
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
    return render(tokenizer, messages, add_generation_prompt=generation_prompt)


def kept_columns(row: Row) -> dict[str, Any]:
    """A row's own columns, those named like one of the run's (`text`, `data_text`, ...) as `data_<name>`."""
    return {f"data_{name}" if _OURS.fullmatch(name) else name: value for name, value in row.items()}


_OURS = re.compile(f"(data_)*({'|'.join(RESERVED)})")


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
    own; cut at `max_tokens`. `spans` finds the response's first token: the first that ends after its start.
    """
    if spans and not tokenizer.is_fast:
        raise BasiscopeError("Pooling over the response needs a fast tokenizer; use --pooling mean.")
    texts = [example.text for example in examples]
    encoded = encode(tokenizer, texts, examples[0].special_tokens, return_offsets_mapping=spans)
    result = []
    for i, example in enumerate(examples):
        ids = encoded["input_ids"][i]
        first = None
        if spans and example.response_start is not None:
            offsets = encoded["offset_mapping"][i]
            first = next((t for t, (_, end) in enumerate(offsets) if end > example.response_start), len(ids))
        result.append(TokenizedText(ids[:max_tokens], first, len(ids) > max_tokens))
    return result


# --- column types ---------------------------------------------------------------------------------------


def column_kinds(source: DataSource) -> dict[str, str]:
    """Each kept column's kind over all rows: bool, int, float, str, or json for nested and mixed values. A CSV
    column is of numbers where all its values are written as such."""
    kinds: dict[str, str] = {}
    of_text = is_local(source.path) and all(_suffix(file) in (".csv", ".tsv") for file in data_files(source.path))
    for _, row in read_rows(source, ReadReport()):
        for name, value in kept_columns(row).items():
            kind = _written_kind(value) if of_text else _kind(value)
            known = kinds.setdefault(name, kind)
            if kind not in (known, "null"):
                kinds[name] = kind if known == "null" else _joined(known, kind)
    mixed = {name for name, kind in kinds.items() if of_text and kind == "json" and name != EXTRA}
    return {name: "str" if kind == "null" or name in mixed else kind for name, kind in kinds.items()}


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, date | time | Decimal):
        return "str"
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "json"
    for kind, types in (("bool", bool), ("int", int), ("float", float), ("str", str)):
        if isinstance(value, types):
            return kind
    return "json"


def _written_kind(value: Any) -> str:
    """The kind of a value that a CSV file can only write; leading zeros are not a number's."""
    if value is None or value == "":
        return "null"
    if not isinstance(value, str):
        return _kind(value)
    if re.fullmatch(r"-?(0|[1-9]\d{0,17})", value):
        return "int"
    is_number = re.fullmatch(r"-?((0|[1-9]\d*)(\.\d+)?|\.\d+)([eE][-+]?\d+)?", value)
    return "float" if is_number else "str"


def _joined(a: str, b: str) -> str:
    return "float" if {a, b} == {"int", "float"} else "json"


def as_kind(value: Any, kind: str) -> Any:
    """A value as its column stores it: nested and mixed columns hold JSON text."""
    if value is None:
        return None
    if kind == "json":
        return json.dumps(value, ensure_ascii=False, default=str)
    if kind == "str":
        return str(value)
    if value == "":
        return None
    return int(value) if kind == "int" else float(value) if kind == "float" else value


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
