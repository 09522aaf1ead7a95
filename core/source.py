"""Where examples come from: a file, a folder or a hub data set, as numbered rows with a report of what was met."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date, time
from decimal import Decimal
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import BasiscopeError
from core.paths import is_open_folder, is_seen_file, is_there, typed_path
from core.readers import COMPRESSIONS, FILE_TYPES, NoRows, Row, as_plain, file_type, needs_care, read_file, reason

if TYPE_CHECKING:
    import pandas as pd

RESERVED = ("example_id", "text", "prompt", "response", "n_tokens")
LONGEST_HUB_ID = 200
"""An owner and a name of at most 96 characters each."""
SHOWN_CHARACTERS = 60
"""So much of a text is shown as an example of what was counted."""
MOST_COLUMNS = 10_000
MOST_NOTES = 20
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""The words by which `datasets` knows splits in the names of files and folders."""


@dataclass(frozen=True)
class DataSource:
    """A file, a folder of files (of a split, where it has some) or a hub data set (with config, split and
    revision), up to `limit` rows."""

    path: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise BasiscopeError(f"Limit {self.limit}: it must be at least 1.")


@dataclass
class ReadReport:
    """What reading met: rows read, notes on whole files, and per problem how many rows, the first few row numbers
    and an example."""

    rows: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    first_rows: dict[str, list[int]] = field(default_factory=dict)
    shown: dict[str, str] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)

    def count(self, problem: str, row: int, example: str | None = None) -> None:
        self.counts[problem] += 1
        if example is not None:
            self.shown.setdefault(problem, " ".join(example.split())[:SHOWN_CHARACTERS])
        if self.counts[problem] <= 5:
            self.first_rows.setdefault(problem, []).append(row)

    def note(self, sentence: str, where: str = "") -> None:
        self.notes[f"{where}: {sentence}" if where else sentence] = None

    def sentences(self) -> list[str]:
        """The notes, then one line per problem, such as `3 rows: empty text (rows 4, 9, 17)`."""
        lines = [*islice(self.notes, MOST_NOTES)]
        if len(self.notes) > MOST_NOTES:
            lines.append(f"{len(self.notes) - MOST_NOTES:,} more notes like these")
        for problem, count in self.counts.most_common():
            rows = ", ".join(map(str, self.first_rows[problem]))
            more = ", ..." if count > len(self.first_rows[problem]) else ""
            noun = "row" if count == 1 else "rows"
            example = f"; for example {self.shown[problem]!r}" if problem in self.shown else ""
            lines.append(f"{count:,} {noun}: {problem} ({noun} {rows}{more}{example})")
        return lines


# --- files ----------------------------------------------------------------------------------------------


def data_files(path: str) -> list[Path]:
    """The data files that `path` means: itself, or those of a folder that can be looked into, by name.

    Raises BasiscopeError where it does not exist, cannot be read or holds no such file.
    """
    root = typed_path(path)
    if is_seen_file(root):
        if file_type(root) not in FILE_TYPES:
            raise BasiscopeError(f"Data {path}: {root.suffix or 'no ending'} is none of {_types()}.")
        return [root]
    if is_open_folder(root):
        found = (file for file in root.rglob("*") if file_type(file) in FILE_TYPES and is_seen_file(file))
        if files := sorted(file for file in found if not _is_hidden(file.relative_to(root))):
            return files
        raise BasiscopeError(f"Data {path}: the folder holds none of {_types()}.")
    raise BasiscopeError(f"Data: there is no file or folder {path} that can be read.")


def _types() -> str:
    return f"{', '.join(FILE_TYPES)} (or one of these with {', '.join(COMPRESSIONS)})"


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def is_local(path: str) -> bool:
    """Whether `path` means files here rather than a hub id: it exists, is written as a path, or is longer than
    any hub id."""
    written = path.startswith(("/", ".", "~")) or file_type(Path(path)) in FILE_TYPES
    return written or len(path) > LONGEST_HUB_ID or is_there(Path(path))


def _place(source: DataSource, file: Path) -> str | None:
    """The file's name within the source's folder, or None where the source is the file itself."""
    root = Path(source.path).expanduser()
    return str(file.relative_to(root)) if root.is_dir() else None


def split_of(file: Path, place: str) -> str | None:
    """The split that a file's name within a folder tells, as `datasets` reads it: `test/a.jsonl`,
    `my-train.csv`, `data/NAME-00000-of-00002.parquet`; None where it tells none."""
    shard = re.match(r"(\w+(?:\.\w+)*)-\d{5}-of-\d{5}\b", file.name)
    if shard and file.parent.name == "data" and not _split_words(shard[1]):
        return shard[1]
    for part in reversed(Path(place).parts):
        if found := _split_words(part):
            return found.pop() if len(found) == 1 else None
    return None


def _split_words(name: str) -> set[str]:
    words = re.split(r"[-._ 0-9]+", name.lower())
    return {split for split, names in SPLIT_WORDS.items() if any(word in names for word in words)}


@dataclass(frozen=True)
class _Files:
    """The files of a local source, and the splits of the whole folder (None: those that tell none)."""

    chosen: list[Path]
    splits: Counter[str | None]


def _files(source: DataSource) -> _Files:
    """Raises BasiscopeError as `data_files`, for a split that is not there, and for what only the hub has."""
    for name in ("config", "revision"):
        if value := getattr(source, name):
            raise BasiscopeError(
                f"Data {source.path}: it lies here, and only a hub data set has a {name} ({value})."
            )
    files = data_files(source.path)
    of = {file: split_of(file, _place(source, file) or file.name) for file in files}
    splits = Counter(of.values())
    if source.split in (None, "all"):
        return _Files(files, splits)
    wanted = {next(iter(_split_words(part)), part) for part in str(source.split).split("+")}
    if set(splits) == {None} and wanted == {"train"}:
        return _Files(files, splits)
    if missing := sorted(wanted - set(splits)):
        known = ", ".join(sorted(filter(None, splits))) or "none"
        raise BasiscopeError(
            f"Data {source.path}: it has no split {missing[0]!r}; its files' names tell these: {known}."
            + (" For the first rows use --limit." if "[" in missing[0] else "")
        )
    return _Files([file for file in files if of[file] in wanted], splits)


def local_splits(source: DataSource) -> list[str]:
    """The splits that the names in a local folder tell, `train` first, where there are several."""
    told = sorted(filter(None, _files(source).splits), key=lambda split: (split != "train", split))
    return told if len(told) > 1 else []


def _splits_note(source: DataSource, splits: Counter[str | None]) -> str | None:
    """What to say where several splits are read as one."""
    told = {split: n for split, n in splits.items() if split}
    shown = told if len(told) > 1 else {split or "others": n for split, n in splits.items()}
    if source.split or len(shown) < 2 or (len(told) < 2 and "train" in told):
        return None
    named = [f"{split} ({n:,} file{'s' * (n > 1)})" for split, n in sorted(shown.items())]
    return (
        f"the folder's splits are read together: {', '.join(named)}; what is held out gets into the pool. "
        "--split train reads one of them, --split all is this without the note"
    )


def data_fingerprint(source: DataSource) -> str:
    """SHA-256 over the contents of the source's files and over what else decides how they are read: a
    file's type, its name within a folder, the split. It does not matter where the files lie."""
    if is_local(source.path):
        named = [(file, _place(source, file) or file_type(file)) for file in _files(source).chosen]
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


# --- rows -----------------------------------------------------------------------------------------------


def read_rows(source: DataSource, report: ReadReport) -> Iterator[tuple[int, Row]]:
    """(row number, row) for every row that can be parsed; the others are counted in `report`.

    Row numbers run over all rows of all files. A folder's rows carry their file's name as `source_file`
    where they have no such column of their own. Raises BasiscopeError for a file that cannot be read.
    """
    numbered = _local_rows(source, report) if is_local(source.path) else enumerate(_hub_rows(source, report))
    for number, row in islice(numbered, source.limit):
        report.rows = number + 1
        if row is not None:
            yield number, row


def _local_rows(source: DataSource, report: ReadReport) -> Iterator[tuple[int, Row | None]]:
    number = 0
    files = _files(source)
    if note := _splits_note(source, files.splits):
        report.note(note)
    for file in files.chosen:
        place = _place(source, file)
        extra = {"source_file": place} if place else {}
        named = place or file.name
        try:
            for row, problems in read_file(file, partial(report.note, where=named)):
                for problem in problems:
                    report.count(problem, number)
                yield number, None if row is None else {**extra, **row}
                number += 1
        except NoRows:
            if not place:
                raise
            report.note(f"file {place} left out, it holds no rows")


def _hub_rows(source: DataSource, report: ReadReport) -> Iterator[Row]:
    data = _load_hub(source)
    careful = [column.name for column in data.features.arrow_schema if needs_care(column.type)]
    for number, row in enumerate(data):
        problems: list[str] = []
        plain = {name: as_plain(row[name], name, problems) for name in careful}
        for problem in dict.fromkeys(problems):
            report.count(problem, number)
        yield {**row, **plain}


def preview_rows(source: DataSource, n: int = 5) -> list[Row]:
    """The first `n` rows that can be parsed. Of a hub data set only these are fetched."""
    if not is_local(source.path):
        whole = replace(source, split=source.split and re.split(r"[\[+]", source.split)[0])
        with _hub_sentences(source):
            rows = list(_load_hub(whole, streaming=True).take(n))
        return [{name: as_plain(value, name, []) for name, value in row.items()} for row in rows]
    limited = replace(source, limit=50 * n)
    return [row for (_, row), _ in zip(read_rows(limited, ReadReport()), range(n), strict=False)]


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
        raise BasiscopeError(f"Data {source.path}: {reason(error)}") from error
    except (OSError, RuntimeError) as error:
        raise BasiscopeError(
            f"Data {source.path} is no file here, not in the local cache, and the hub cannot be reached."
        ) from error


@lru_cache(maxsize=2)
def _load_hub(source: DataSource, streaming: bool = False) -> Any:
    """The data set, its images and sounds as the bytes that they are."""
    from datasets import DatasetDict, IterableDatasetDict, load_dataset
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    if source.path in _PACKAGED_DATASETS_MODULES:  # without files it reads all that the current folder has
        raise BasiscopeError(
            f"Data {source.path}: no such file here, and no data set but a reader of the library `datasets`. "
            "Give a file, a folder or OWNER/NAME."
        )
    with _hub_sentences(source):
        data = load_dataset(
            source.path, source.config, split=source.split, revision=source.revision, streaming=streaming
        )
    if isinstance(data, DatasetDict | IterableDatasetDict):
        raise BasiscopeError(f"Data {source.path}: choose a split with --split: {', '.join(data)}.")
    for name, feature in (data.features or {}).items():
        if getattr(feature, "decode", None) is True:
            data = data.cast_column(name, replace(feature, decode=False))
    return data


# --- column types ---------------------------------------------------------------------------------------


def kept_columns(row: Row) -> dict[str, Any]:
    """A row's own columns, those named like one of the run's (`text`, `data_text`, ...) as `data_<name>`."""
    return {f"data_{name}" if _OURS.fullmatch(name) else name: value for name, value in row.items()}


_OURS = re.compile(f"(data_)*({'|'.join(RESERVED)})")


def column_kinds(source: DataSource) -> dict[str, str]:
    """Each kept column's kind over all rows: bool, int, float, str, or json for nested and mixed values. A column
    is of numbers where the number gives back what is written, in every row: 2.5, not 2.50, 1e5 or 007 (in CSV),
    nor whole numbers among others."""
    kinds: dict[str, str] = {}
    of_text = is_local(source.path) and all(file_type(file) in (".csv", ".tsv") for file in _files(source).chosen)
    for _, row in read_rows(source, ReadReport()):
        for name, value in kept_columns(row).items():
            kind = _written_kind(value) if of_text else _kind(value)
            known = kinds.setdefault(name, kind)
            if kind not in (known, "null"):
                kinds[name] = (
                    kind if known == "null" else "str" if of_text and "json" not in (kind, known) else "json"
                )
        if len(kinds) > MOST_COLUMNS:
            raise BasiscopeError(
                f"Data {source.path}: its rows have more than {MOST_COLUMNS:,} different columns."
            )
    return {name: "str" if kind == "null" else kind for name, kind in kinds.items()}


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
    """The kind of a value that a CSV file can only write: a number's where writing that gives the same text."""
    if value is None or value == "":
        return "null"
    if not isinstance(value, str):
        return _kind(value)
    if re.fullmatch(r"-?[0-9]{1,19}", value):
        return "int" if str(int(value)) == value and -(2**63) <= int(value) < 2**63 else "str"
    is_number = re.fullmatch(r"-?[0-9.]{1,40}(e[-+][0-9]{1,3})?", value) and value.count(".") < 2
    return "float" if is_number and value != "." and repr(float(value)) == value else "str"


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


_WRITTEN_NUMBER = r"-?(0|[1-9][0-9]*)(\.[0-9]+)?(e[-+][0-9]+)?|NaN|-?Infinity"


def as_numbers(column: pd.Series) -> pd.Series | None:
    """A column of numbers, or of texts that are all written as such (1.50, 2), as numbers to sort and colour by;
    None for any other, such as texts of digits alone."""
    import pandas as pd

    if pd.api.types.is_numeric_dtype(column):
        return None if pd.api.types.is_bool_dtype(column) else column
    known = column[column.notna() & (column != "")]
    if known.empty or not pd.api.types.is_string_dtype(known):
        return None
    is_number = known.str.contains(".", regex=False).any() and known.str.fullmatch(_WRITTEN_NUMBER).all()
    return known.astype(float).reindex(column.index) if is_number else None
