"""The formats of data files: each file's rows as they are written there, or a sentence that says why not."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from itertools import count as natural_numbers
from itertools import repeat, zip_longest
from math import isinf
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from core.errors import BasiscopeError

if TYPE_CHECKING:
    import pyarrow as pa

EXTRA = "_extra"
"""The column of a CSV row's fields beyond the header."""
BATCH = 1_000
WINDOW = 2**16
LONGEST_ROW, LONGEST_VALUE = 2**26, 2**28
"""Bytes of a line or characters of a CSV field, and characters of a JSON value that goes over lines: what is
longer is no row, and must not fill the memory."""
DEEPEST = 200
"""Lists and objects within each other: what is deeper cannot be written again."""
ROWS_NAMES = ("data", "rows", "examples", "instances", "records", "items")
BLANK = "left out, a blank line"
REPLACED = "not UTF-8, undecodable bytes replaced"
SURROGATES = "not Unicode, halves of surrogate pairs replaced"
REPEATED = "a name stands twice in an object, its last value is read"
TOO_LARGE = "a number is beyond what 64 bits hold, read as infinite"
NOT_JSON = "left out, not valid JSON"
NOT_OBJECT = "left out, not a JSON object"
TOO_DEEP = f"left out, nested more than {DEEPEST} deep"
RAGGED = "ragged, more or fewer fields than the header"

Row = Mapping[str, Any]
Parsed = Iterator[tuple[Row | None, tuple[str, ...]]]
"""A row, or None where it cannot be used, and the problems met in it."""
Note = Callable[[str], None]


class NoRows(BasiscopeError):
    """A JSON file that is whole, and holds something else than rows."""


def read_file(file: Path, note: Note) -> Parsed:
    """Every row of a data file in order. What concerns the whole file is told to `note`.

    Raises BasiscopeError for a file that cannot be read, NoRows for JSON without rows.
    """
    try:
        yield from _READERS[file_type(file)](file, note)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise BasiscopeError(f"Data {file}: it cannot be read ({reason(error)}).") from error


def reason(error: BaseException) -> str:
    """The first line of what an exception says, or its name."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


# --- bytes and lines ------------------------------------------------------------------------------------


def _open_zstd(file: Path) -> io.BufferedIOBase:
    import pyarrow as pa

    return pa.CompressedInputStream(pa.OSFile(str(file)), "zstd")


COMPRESSIONS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zstd,
}
_STARTS = {
    codecs.BOM_UTF16_LE: "it is UTF-16; save it as UTF-8",
    codecs.BOM_UTF16_BE: "it is UTF-16; save it as UTF-8",
    b"\x1f\x8b": "it is compressed by gzip; give its name the ending .gz",
    b"\x28\xb5\x2f\xfd": "it is compressed by zstd; give its name the ending .zst",
    b"\xfd7zXZ\x00": "it is compressed by xz; give its name the ending .xz",
    b"BZh91AY&SY": "it is compressed by bzip2; give its name the ending .bz2",
    b"PAR1\x15": "it is a Parquet file; give its name the ending .parquet",
    b"PK\x03\x04": "it is a zip archive or a spreadsheet; unpack it, or save it as CSV",
    b"version https://git-lfs.": "it is a pointer of Git LFS, not the file itself; fetch that with git lfs pull",
}


def file_type(file: Path) -> str:
    """The ending that says the format, in small letters and without that of a compression.

    >>> file_type(Path("rows.JSONL.gz"))
    '.jsonl'
    """
    compressed = file.suffix.lower() in COMPRESSIONS
    return Path(file.stem).suffix.lower() if compressed else file.suffix.lower()


@contextmanager
def _opened(file: Path) -> Iterator[io.BufferedReader]:
    """The file's bytes, decompressed, after any byte order mark. Raises BasiscopeError for bytes that are not what
    the name says."""
    how = COMPRESSIONS.get(file.suffix.lower(), lambda path: path.open("rb", buffering=0))
    with io.BufferedReader(how(file), WINDOW) as content:
        start = content.peek(16)
        for bytes_, what in _STARTS.items():
            if start.startswith(bytes_):
                raise BasiscopeError(f"Data {file}: {what}.")
        if start.startswith(codecs.BOM_UTF8):
            content.read(len(codecs.BOM_UTF8))
        yield content


def _lines(file: Path, content: io.BufferedIOBase) -> Iterator[bytes]:
    for number, raw in enumerate(iter(partial(content.readline, LONGEST_ROW), b""), start=1):
        if len(raw) == LONGEST_ROW:
            raise BasiscopeError(f"Data {file}, line {number}: it is longer than {LONGEST_ROW:,} bytes.")
        yield raw


def _decode(raw: bytes) -> tuple[str, tuple[str, ...]]:
    try:
        return raw.decode("utf-8"), ()
    except UnicodeDecodeError:
        return raw.decode("utf-8", errors="replace"), (REPLACED,)


# --- JSON -----------------------------------------------------------------------------------------------


class _Decoder(json.JSONDecoder):
    """Knows which problems it met since `met` was last emptied."""

    def __init__(self) -> None:
        super().__init__(object_pairs_hook=self._object, parse_float=self._float)
        self.met: set[str] = set()

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            self.met.add(REPEATED)
        return found

    def _float(self, text: str) -> float:
        value = float(text)
        if isinf(value):
            self.met.add(TOO_LARGE)
        return value


def _read_json(file: Path, note: Note) -> Parsed:
    """One object a line, an array of objects, objects one after another over several lines, or in a `.json` file
    an object that holds the rows under one name. All are streamed but the last."""
    if _is_by_line(file):
        yield from _read_json_lines(file)
        return
    with _opened(file) as content:
        values = _Values(file, content)
        if not values.is_array:
            first, second = next(values), next(values, None)
            if not isinstance(first[0], dict):
                kind = type(first[0]).__name__
                raise NoRows(f"Data {file}: holds a JSON {kind}, expected an array of objects.")
            if second is None and file_type(file) == ".json":
                yield from _unwrapped(file, *first, note)
                return
            yield from (_object(*value) for value in (first, second) if value)
        yield from (_object(*value) for value in values)


def _is_by_line(file: Path) -> bool:
    """Whether the rows of a JSON file are its lines: where the first is an object and others follow. The lines of
    a `.jsonl` file are its rows unless they cannot be: it is an array, or its first object goes over several."""
    is_jsonl = file_type(file) != ".json"
    with _opened(file) as content:
        filled = (raw.strip() for raw in _lines(file, content) if raw.strip())
        first, has_more = next(filled, b""), next(filled, None) is not None
    try:
        value = json.loads(_decode(first)[0])
    except (ValueError, RecursionError):
        return is_jsonl and not _begins_with_rows(file, has_more)
    if isinstance(value, dict):
        return is_jsonl or has_more
    return is_jsonl and (has_more or not isinstance(value, list))


def _begins_with_rows(file: Path, has_more: bool) -> bool:
    """Whether a file whose first line is not JSON begins with an object that goes on over the next lines, with an
    array of objects, or is one line of objects without line breaks between."""
    with _opened(file) as content:
        try:
            values = _Values(file, content)
            first, _ = next(values)
            if values.is_array:
                next(values, None)
        except (BasiscopeError, StopIteration):
            return False
        return isinstance(first, dict) and (values.is_array or values.line > 1 or not has_more)


def _read_json_lines(file: Path) -> Parsed:
    decoder = _Decoder()
    with _opened(file) as content:
        for raw in _lines(file, content):
            if not raw.strip():
                yield None, (BLANK,)
                continue
            text, problems = _decode(raw)
            try:
                value = decoder.decode(text)
            except (ValueError, RecursionError):
                yield None, (*problems, NOT_JSON)
                decoder.met.clear()
                continue
            yield _object(value, _met(text, value, decoder) + problems)


def _met(text: str, value: Any, decoder: _Decoder) -> tuple[str, ...]:
    """The problems of a value that was read from `text`."""
    met = sorted(decoder.met)
    decoder.met.clear()
    is_deep = text.count("[") + text.count("{") > DEEPEST and _depth(value) > DEEPEST
    has_halves = r"\ud" in text or r"\uD" in text
    return (*((TOO_DEEP,) * is_deep), *met, *((SURROGATES,) * has_halves))


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [inner for inner in level if isinstance(inner, dict | list)]:
        depth += 1
        level = [part for inner in level for part in (inner.values() if isinstance(inner, dict) else inner)]
    return depth


def _object(value: Any, problems: tuple[str, ...]) -> tuple[Row | None, tuple[str, ...]]:
    """A value as a row with its problems; those that are feared are looked into."""
    if not isinstance(value, dict):
        return None, (*(p for p in problems if p == REPLACED), NOT_OBJECT)
    if TOO_DEEP in problems:
        return None, problems
    if TOO_LARGE in problems and "Infinity" not in json.dumps(value):  # it is in another row of the same object
        problems = tuple(p for p in problems if p != TOO_LARGE)
    if SURROGATES not in problems:
        return value, problems
    clean = without_surrogates(value)
    return clean, tuple(p for p in problems if p != SURROGATES or clean != value)


def without_surrogates(value: Any) -> Any:
    """The same with halves of surrogate pairs, which JSON can escape but neither tokenizer nor Parquet takes,
    replaced."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list | tuple):
        return [without_surrogates(item) for item in value]
    if isinstance(value, Mapping):
        return {without_surrogates(key): without_surrogates(item) for key, item in value.items()}
    return value


class _Values(Iterator[tuple[Any, tuple[str, ...]]]):
    """The values of a JSON text with their problems: the items of its array, or those that follow one another. No
    more than one is held beside WINDOW characters. Raises BasiscopeError at what is not JSON."""

    def __init__(self, file: Path, content: io.BufferedReader) -> None:
        self._content = io.TextIOWrapper(content, "utf-8", "surrogateescape", newline="")
        self._file, self._decoder = file, _Decoder()
        self._buffer, self._at, self._lines_before, self._n = "", 0, 0, 0
        self.is_array = self._skip() == "["
        self._at += self.is_array

    @property
    def line(self) -> int:
        """The line at which the next value begins."""
        return self._line_of(self._at)

    def __next__(self) -> tuple[Any, tuple[str, ...]]:
        sign = self._skip()
        if self.is_array and (self._n or sign == "]"):
            self._at += sign in ("]", ",")
            if sign == "]" and not self._skip():
                raise StopIteration
            if sign != ",":
                self._refuse("more text after its end" if sign == "]" else "Expecting ',' delimiter", self._at)
            sign = self._skip()
        if not sign and not self.is_array and self._n:
            raise StopIteration
        self._n += 1
        if not (sign or self.is_array):
            self._refuse("it is empty", 0)
        return self._value()

    def _skip(self) -> str:
        """The next sign that is no blank, or an empty text at the end."""
        while True:
            self._at = _BLANKS.match(self._buffer, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._buffer) or not self._read_more():
                return self._buffer[self._at : self._at + 1]

    def _read_more(self) -> bool:
        rest = len(self._buffer) - self._at
        if rest > LONGEST_VALUE:
            raise BasiscopeError(
                f"Data {self._file}, line {self.line}: a value is longer than {LONGEST_VALUE:,} characters; write "
                "one object per line into a .jsonl file."
            )
        more = self._content.read(max(WINDOW, rest))
        self._lines_before += self._buffer.count("\n", 0, self._at)
        self._buffer, self._at = self._buffer[self._at :] + more, 0
        return bool(more)

    def _value(self) -> tuple[Any, tuple[str, ...]]:
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                might_go_on = error.pos > len(self._buffer) - 16 or error.msg.startswith("Unterminated")
                if not (might_go_on and self._read_more()):
                    self._refuse(error.msg, error.pos)
            except RecursionError:
                self._refuse(f"nested more than {DEEPEST} deep", self._at)
            except ValueError as error:
                self._refuse(reason(error), self._at)
            else:
                if end < len(self._buffer) or not self._read_more():
                    text = self._buffer[self._at : end]
                    self._at = end
                    return self._checked(value, text)
            self._decoder.met.clear()

    def _checked(self, value: Any, text: str) -> tuple[Any, tuple[str, ...]]:
        problems = _met(text, value, self._decoder)
        if text.isascii() or not _ESCAPED.search(text):
            return value, problems
        return json.loads(_decode(text.encode("utf-8", "surrogateescape"))[0]), (*problems, REPLACED)

    def _line_of(self, position: int) -> int:
        return self._lines_before + self._buffer.count("\n", 0, position) + 1

    def _refuse(self, why: str, position: int) -> None:
        form = "a valid JSON array" if self.is_array else "valid JSON"
        hint = "" if file_type(self._file) != ".json" else " One object per line belongs in a .jsonl file."
        line = self._line_of(position)
        kind = NoRows if self._n == 1 and not self.is_array else BasiscopeError
        raise kind(f"Data {self._file}, line {line}: not {form} ({why}).{hint}")


_BLANKS = re.compile(r"[ \t\r\n]*")
_ESCAPED = re.compile("[\udc80-\udcff]")


def _unwrapped(file: Path, value: dict[str, Any], problems: tuple[str, ...], note: Note) -> Parsed:
    """The rows of a file that is one object: the list of objects that it holds, or its columns."""
    named = {name: rows for name, rows in value.items() if _are_objects(rows)}
    name = next((name for name in (*ROWS_NAMES, *(named if len(value) == 1 else ())) if name in named), None)
    if name is not None:
        others = ", ".join(repr(other) for other in value if other != name)
        note(
            f"the rows are the list under {name!r}"
            + (f"; not read is what stands beside it: {others}" if others else "")
        )
        rows = named[name]
    elif value and len(named) == len(value):
        raise NoRows(
            f"Data {file}: holds several lists of objects ({', '.join(map(repr, named))}); put the rows that are "
            "wanted into a file of their own."
        )
    elif (
        value
        and all(isinstance(cells, list) for cells in value.values())
        and len(set(map(len, value.values()))) == 1
    ):
        note("the object is read as columns, each a list of values")
        rows = [dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=True)]
    else:
        raise NoRows(
            f"Data {file}: holds a JSON dict, expected an array of objects, or an object that holds them under "
            'one name, such as {"data": [...]}.'
        )
    for row in rows:
        yield _object(row, problems)


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


# --- CSV ------------------------------------------------------------------------------------------------


def _read_csv(file: Path, note: Note) -> Parsed:
    csv.field_size_limit(LONGEST_ROW)
    with _opened(file) as content:
        record: list[bytes] = []
        delimiter = "\t" if file_type(file) == ".tsv" else ","
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
                    header = _header(file, cells, note)
        except csv.Error as error:
            start = reader.line_num - len(record) + 1
            raise BasiscopeError(f"Data {file}, line {start}: not valid CSV from there on ({error}).") from error


def _record_lines(file: Path, content: io.BufferedIOBase, record: list[bytes]) -> Iterator[str]:
    """The file's lines, each put into `record`, too. A parser that has read a whole record asks for no more, so
    the empty line put there after the last tells that the last record is open to the end."""
    for raw in _lines(file, content):
        record.append(raw)
        yield _decode(raw)[0]
    record.append(b"")


def _header(file: Path, cells: list[str], note: Note) -> list[str]:
    if any("\0" in name for name in cells):
        raise BasiscopeError(f"Data {file}: its header has NUL in it, as UTF-16 has; save it as UTF-8.")
    if any("\ufffd" in name for name in cells):
        note("the header is not UTF-8, undecodable bytes replaced")
    return distinct(cells, note)


def _cells_as_row(header: list[str], cells: list[str]) -> tuple[Row | None, tuple[str, ...]]:
    if not cells:
        return None, (BLANK,)
    problems = []
    if len(cells) != len(header):
        problems.append(RAGGED)
    if any("\ufffd" in cell for cell in cells):
        problems.append(REPLACED)
    row: dict[str, Any] = dict(zip_longest(header, cells[: len(header)]))
    if len(cells) > len(header):
        row[distinct([*header, EXTRA])[-1]] = cells[len(header) :]
    return row, tuple(problems)


def distinct(names: Iterable[str], note: Note | None = None) -> list[str]:
    """Column names, the second `a` as `a.1`, as pandas does."""
    found: dict[str, None] = {}
    for name in names:
        numbered = (f"{name}.{i}" for i in natural_numbers(1))
        own = name if name not in found else next(other for other in numbered if other not in found)
        if note and own != name:
            note(f"another column {name!r} is read as {own!r}")
        found[own] = None
    return list(found)


# --- Parquet --------------------------------------------------------------------------------------------


def _read_parquet(file: Path, note: Note) -> Parsed:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if file.suffix.lower() in COMPRESSIONS:
        raise BasiscopeError(f"Data {file}: a Parquet file is compressed inside; unpack this one.")
    with file.open("rb") as content:
        start = content.read(32)
    if start.startswith(b"version https://git-lfs."):
        raise BasiscopeError(f"Data {file}: {_STARTS[b'version https://git-lfs.']}.")
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            names = distinct(parquet.schema_arrow.names, note)
            for batch in parquet.iter_batches(batch_size=BATCH):
                yield from _batch_rows(batch, names)
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        raise BasiscopeError(f"Data {file}: not a readable Parquet file ({reason(error)}).") from error


def _batch_rows(batch: pa.RecordBatch, names: list[str]) -> Parsed:
    met: dict[int, list[str]] = defaultdict(list)
    columns = [_cells(column, name, met) for name, column in zip(names, batch.columns, strict=True)]
    rows = zip(*columns, strict=True) if columns else repeat((), batch.num_rows)
    for i, cells in enumerate(rows):
        yield dict(zip(names, cells, strict=True)), tuple(dict.fromkeys(met.get(i, ())))


def _cells(column: pa.Array, name: str, met: dict[int, list[str]]) -> list[Any]:
    """A column's values as Python's; what that cannot hold as text, with its problems by row."""
    import pyarrow as pa

    try:
        if column.type == pa.time64("ns"):  # Python's have no nanoseconds
            raise ValueError
        values = column.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError, LookupError, TypeError):
        values = [_cell(scalar, met[i]) for i, scalar in enumerate(column)]
    if not needs_care(column.type):
        return values
    return [as_plain(value, name, met[i]) for i, value in enumerate(values)]


def _cell(scalar: pa.Scalar, problems: list[str]) -> Any:
    """A value of which a part is beyond Python: a date after the year 9999, a text that is not UTF-8."""
    import pyarrow as pa

    if not scalar.is_valid:
        return None
    if isinstance(scalar, pa.StructScalar):
        names = distinct(field.name for field in scalar.type)
        return {name: _cell(scalar[i], problems) for i, name in enumerate(names)}
    if isinstance(scalar, pa.ListScalar | pa.LargeListScalar | pa.FixedSizeListScalar):
        return [_cell(item, problems) for item in scalar.values]
    try:
        if scalar.type == pa.time64("ns") and scalar.value % 1_000:
            raise ValueError
        return scalar.as_py()
    except UnicodeDecodeError:
        problems.append(REPLACED)
        return _decode(scalar.as_buffer().to_pybytes())[0]
    except (pa.ArrowException, ValueError, OverflowError, LookupError, TypeError):
        return _written(scalar)


def _written(scalar: pa.Scalar) -> str:
    """A time as Arrow writes it, or its number and type, such as `36028797018963968 timestamp[ms]`."""
    import pyarrow as pa

    if not pa.types.is_duration(scalar.type):
        with suppress(pa.ArrowException):
            text = str(scalar.cast(pa.string()).as_py())
            if not text.startswith("<"):
                return text
    return f"{scalar.value} {scalar.type}"


def needs_care(kind: pa.DataType) -> bool:
    """Whether values of an Arrow type can be something else in Python than text, numbers and dates."""
    import pyarrow as pa

    if isinstance(kind, pa.DictionaryType):
        return needs_care(kind.value_type)
    if isinstance(kind, pa.MapType) or kind.num_fields:
        return isinstance(kind, pa.MapType) or any(needs_care(kind.field(i).type) for i in range(kind.num_fields))
    plain = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    numbers = (
        pa.types.is_boolean,
        pa.types.is_integer,
        pa.types.is_decimal,
        pa.types.is_float32,
        pa.types.is_float64,
    )
    dates = (pa.types.is_date, pa.types.is_time, pa.types.is_timestamp)
    return not any(is_one(kind) for is_one in (*plain, *numbers, *dates))


def as_plain(value: Any, name: str, problems: list[str]) -> Any:
    """A value in which bytes are UTF-8 text, and what is neither number, text nor date is text or a list. Bytes
    that are no text are left out and said."""
    if isinstance(value, bytes | bytearray):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            problems.append(f"bytes in {name!r} that are not UTF-8 text are left out")
            return None
    if isinstance(value, Mapping):
        return {str(key): as_plain(inner, name, problems) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(inner, name, problems) for inner in value]
    if isinstance(value, timedelta | UUID):
        return str(value)
    return value.tolist() if hasattr(value, "tolist") else value


_READERS: dict[str, Callable[[Path, Note], Parsed]] = {
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
FILE_TYPES = tuple(_READERS)
