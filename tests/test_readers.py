"""What reading does with values, shapes and damage: it comes out as it went in, or is said."""

import bz2
import gzip
import json
import lzma
import os
import random
import socket
import time
from collections import Counter
from datetime import date, datetime, timedelta
from datetime import time as clock
from decimal import Decimal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core import readers
from core.errors import BasiscopeError
from core.readers import BLANK, NOT_JSON, NOT_OBJECT, RAGGED, REPEATED, REPLACED, SURROGATES, TOO_DEEP, TOO_LARGE
from core.selection.screening import file_digest
from core.source import DataSource, ReadReport, as_kind, as_numbers, column_kinds, preview_rows, read_rows

TWO = [{"t": "l 0"}, {"t": "l 1"}]
MUTATIONS = int(os.environ.get("BASISCOPE_MUTATIONS", "400"))
"""Mutated files that are read; 10,000 in the long form."""


def rows_of(path, **choices):
    report = ReadReport()
    return [row for _, row in read_rows(DataSource(str(path), **choices), report)], report


@pytest.fixture
def write(tmp_path):
    """write(name, content) -> the path of a file with it, in a folder where it says so."""

    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def stored(path):
    """Each column as a run stores it."""
    source = DataSource(str(path))
    kinds = column_kinds(source)
    rows = [row for _, row in read_rows(source, ReadReport())]
    return {name: [as_kind(row.get(name), kind) for row in rows] for name, kind in kinds.items()}


# --- values ---------------------------------------------------------------------------------------------

TEXTS = {
    "version": ["1.10", "1.1"],
    "hex": ["12e45", "13e45"],
    "zip": ["007", "8"],
    "phone": ["+5", "6"],
    "grouped": ["1_000", "2"],
    "power": ["1e5", "2.0"],
    "arabic": ["\u0661", "2"],
    "zero": ["-0", "1"],
    "spaced": [" 1", "2"],
    "large": ["9223372036854775808", "1"],
    "long": ["123456789012345678901234567890", "1"],
    "exact": ["0.1234567890123456789", "0.5"],
    "words": ["nan", "inf"],
    "missing": ["NA", "null"],
    "truth": ["true", "False"],
    "whole": ["1", "0.5"],
    "beyond": ["9007199254740993", "1.5"],
    "infinite": ["1e+999", "0.5"],
}
NUMBERS = {
    "id": ["1234567890123456789", "1234567890123456788"],
    "least": ["-9223372036854775808", "9223372036854775807"],
    "share": ["0.5", "1.0"],
    "tiny": ["1e-05", "0.30000000000000004"],
    "empty": ["", "3"],
}


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_a_csv_column_is_of_numbers_only_where_they_give_its_text_back(write, delimiter):
    columns = TEXTS | NUMBERS
    lines = [delimiter.join(cells) for cells in (columns, *zip(*columns.values(), strict=True))]
    found = stored(write("x.csv" if delimiter == "," else "x.tsv", "\n".join(lines)))
    assert {name: found[name] for name in TEXTS} == TEXTS
    for name, texts in NUMBERS.items():
        assert all(isinstance(value, int | float) for value in found[name] if value is not None)
        assert [repr(value) if value is not None else "" for value in found[name]] == texts


@pytest.mark.parametrize("form", ["jsonl", "json", "parquet"])
def test_whole_numbers_beside_others_stay_whole(tmp_path, form):
    rows = [
        {"x": 9007199254740993, "m": 1, "f": 0.5},
        {"x": 1.5, "m": "1", "f": 2.0},
        {"x": 3, "m": True, "f": None},
    ]
    if form == "parquet":
        (tmp_path / "x").mkdir()
        for i, row in enumerate(rows):
            pq.write_table(pa.Table.from_pylist([row]), tmp_path / "x" / f"{i}.parquet")
        found = stored(tmp_path / "x")
    else:
        (tmp_path / f"x.{form}").write_text(
            json.dumps(rows) if form == "json" else "\n".join(json.dumps(row) for row in rows)
        )
        found = stored(tmp_path / f"x.{form}")
    assert found["x"] == ["9007199254740993", "1.5", "3"]
    assert found["m"] == ["1", '"1"', "true"] and found["f"] == [0.5, 2.0, None]


def test_written_numbers_are_sorted_and_coloured_as_numbers():
    assert as_numbers(pd.Series(["9.50", "10.00", "", None])).tolist()[:2] == [9.5, 10.0]
    assert as_numbers(pd.Series(["1", "0.5", "NaN"])).tolist()[:2] == [1.0, 0.5]
    for texts in (["1", "2"], ["007.5", "1"], ["1.5", "x"], ["1_0.5", "2"], [None, None], ["", ""]):
        assert as_numbers(pd.Series(texts, dtype="str")) is None
    assert as_numbers(pd.Series([True, False])) is None


def test_parquet_types_come_out_as_they_went_in(tmp_path):
    late = pa.array([253402300800 * 10**6, 0], pa.timestamp("us"))  # the year 10000
    columns = {
        "bytes": pa.array(["aa é".encode(), None], pa.binary()),
        "large": pa.array([b"x", b""], pa.large_binary()),
        "fixed": pa.array([b"ab", b"cd"], pa.binary(2)),
        "words": pa.array([b"a", b"a"], pa.binary()).dictionary_encode(),
        "nested": pa.array(
            [{"b": b"in", "l": [b"x"]}, None], pa.struct({"b": pa.binary(), "l": pa.list_(pa.binary())})
        ),
        "map": pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int64())),
        "late": late,
        "lates": pa.array([[datetime(2026, 1, 2)], None], pa.list_(pa.timestamp("us"))),
        "late_list": pa.ListArray.from_arrays([0, 1, 2], late),
        "day": pa.array([10**7, 0], pa.int32()).cast(pa.date32()),
        "early": pa.array([-(10**6), 1], pa.int32()).cast(pa.date32()),
        "for": pa.array([timedelta(days=1, seconds=1), None], pa.duration("us")),
        "price": pa.array([Decimal("1.50"), None]),
        "half": pa.array([1.5, None], pa.float16()),
        "unsigned": pa.array([2**64 - 1, 1], pa.uint64()),
        "view": pa.array(["v", None], pa.string_view()),
        "fine": pa.array([1, 1_000], pa.time64("ns")),
        "latest": pa.array([2**55, 0], pa.timestamp("ms")),
        "elsewhere": pa.array([1, 2], pa.timestamp("ms", tz="Mars/Base")),
        "ages": pa.array([2**62, 1], pa.duration("s")),
    }
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    rows, report = rows_of(tmp_path / "x.parquet")
    assert not report.sentences()
    assert rows[0] == {
        "bytes": "aa é",
        "large": "x",
        "fixed": "ab",
        "words": "a",
        "nested": {"b": "in", "l": ["x"]},
        "map": [["k", 1]],
        "late": "10000-01-01 00:00:00.000000",
        "lates": [datetime(2026, 1, 2)],
        "late_list": ["10000-01-01 00:00:00.000000"],
        "day": "29349-01-26",
        "early": "-0768-02-04",
        "for": "1 day, 0:00:01",
        "price": Decimal("1.50"),
        "half": 1.5,
        "unsigned": 2**64 - 1,
        "view": "v",
        "fine": "00:00:00.000000001",
        "latest": "36028797018963968 timestamp[ms]",
        "elsewhere": "1 timestamp[ms, tz=Mars/Base]",
        "ages": "4611686018427387904 duration[s]",
    }
    assert rows[1]["fine"] == clock(0, 0, 0, 1)
    assert rows[1]["late"] == datetime(1970, 1, 1) and rows[1]["day"] == date(1970, 1, 1)
    assert column_kinds(DataSource(str(tmp_path / "x.parquet")))["late"] == "str"


def test_bytes_that_are_no_text_are_left_out_and_texts_that_are_none_replaced(tmp_path):
    bad = pa.array([b"ok", b"caf\xe9"], pa.binary())
    texts = pa.StringArray.from_buffers(2, *bad.buffers()[1:])
    pq.write_table(pa.table({"image": bad, "t": texts}), tmp_path / "x.parquet")
    rows, report = rows_of(tmp_path / "x.parquet")
    assert rows == [{"image": "ok", "t": "ok"}, {"image": None, "t": "caf\ufffd"}]
    assert report.first_rows == {REPLACED: [1], "bytes in 'image' that are not UTF-8 text are left out": [1]}


def test_columns_of_one_name_are_all_kept(tmp_path, write):
    arrays = [pa.array([1]), pa.array([2]), pa.array([3])]
    pq.write_table(pa.Table.from_arrays(arrays, names=["a", "a", "a.1"]), tmp_path / "x.parquet")
    rows, report = rows_of(tmp_path / "x.parquet")
    assert rows == [{"a": 1, "a.1": 2, "a.1.1": 3}]
    assert report.sentences()[0] == "x.parquet: another column 'a' is read as 'a.1'"
    rows, report = rows_of(write("x.csv", "a,a,_extra\n1,2,3,4\n"))
    assert rows == [{"a": "1", "a.1": "2", "_extra": "3", "_extra.1": ["4"]}]
    assert report.sentences()[0] == "x.csv: another column 'a' is read as 'a.1'"
    rows, report = rows_of(write("x.jsonl", '{"a": 1, "b": {"c": 1, "c": 2}}\n{"a": 1}\n'))
    assert rows[0] == {"a": 1, "b": {"c": 2}} and report.first_rows == {REPEATED: [0]}


# --- shapes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("lines.json", '{"t": "l 0"}\n{"t": "l 1"}\n', None),
        ("array.jsonl", '[{"t": "l 0"}, {"t": "l 1"}]', None),
        ("array.ndjson", '\ufeff[\n  {"t": "l 0"},\n  {"t": "l 1"}\n]\n', None),
        ("pretty.jsonl", '{\n "t": "l 0"\n}\n{\n "t": "l 1"\n}', None),
        ("pretty.json", '{\n "t": "l 0"\n}\n\n{\n "t": "l 1"\n}\n', None),
        ("glued.jsonl", '{"t": "l 0"}{"t": "l 1"}', None),
        ("data.json", '{"data": [{"t": "l 0"}, {"t": "l 1"}]}', "the rows are the list under 'data'"),
        ("other.json", '{\n"things": [{"t": "l 0"}, {"t": "l 1"}]}', "the rows are the list under 'things'"),
        ("more.json", '{"version": 1, "rows": [{"t": "l 0"}, {"t": "l 1"}]}', "stands beside it: 'version'"),
        ("columns.json", '{"t": ["l 0", "l 1"]}', "read as columns"),
    ],
)
def test_json_is_read_by_its_content(write, name, content, note):
    rows, report = rows_of(write(name, content))
    assert rows == TWO and report.rows == 2
    assert (note in report.sentences()[0]) if note else not report.sentences()


@pytest.mark.parametrize(
    "first", ['{"t": "l 0",', '{"t": "l 0', '{"t":', "[", "{", "nonsense", '{"t": "l 0"} {"t": "l 0"}', "[1, 2]"]
)
def test_a_broken_first_line_costs_one_row(write, first):
    rows, report = rows_of(write("x.jsonl", f'{first}\n{{"t": "l 1"}}\n\n{{"t": "l 2"}}\n'))
    assert [row["t"] for row in rows] == ["l 1", "l 2"] and report.rows == 4 and report.counts[BLANK] == 1


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('[{"t": 1},\n {"t": }]', "line 2: not a valid JSON array"),
        ('[{"t": 1}] []', "more text after its end"),
        ('{"t": 1}\n{"t"\n', None),
        ('{\n"t": 1}\n{"t"\n}', "line 4: not valid JSON"),
        ('{"t": 1}', "holds a JSON dict, expected an array"),
        ('"a"\n"b"', "holds a JSON str, expected an array"),
        ("", "it is empty"),
        ('[{"t": ' + "[" * 100_000 + "]" * 100_000 + "}]", "nested more than 200 deep"),
    ],
)
def test_json_that_is_not_whole_is_named_with_its_line(write, content, sentence):
    path = write("x.json", content)
    if sentence is None:
        assert rows_of(path)[1].first_rows == {NOT_JSON: [1]}
        return
    with pytest.raises(BasiscopeError, match=sentence):
        rows_of(path)


def test_what_is_too_deep_is_left_out(write):
    deep = ['{"t": ' + "[" * n + "]" * n + "}" for n in (100, 300, 100_000)]
    rows, report = rows_of(write("x.jsonl", "\n".join(deep)))
    assert len(rows) == 1 and report.first_rows == {TOO_DEEP: [1], NOT_JSON: [2]}
    assert all(json.dumps(row) for row in rows)
    assert rows_of(write("x.json", f"[{deep[0]}, {deep[1]}]"))[1].first_rows == {TOO_DEEP: [1]}


@pytest.mark.parametrize("form", ["{}\n{}\n", "[{}, {}]", '{{"data": [{}, {}]}}'])
@pytest.mark.parametrize("number", ["1e400", "-2.5E+999", '[0.5, {"b": 1e309}]'])
def test_a_number_that_no_float_holds_is_counted(write, form, number):
    content = form.format('{"t": "Infinite", "n": 1e308}', f'{{"t": "b", "n": {number}}}')
    rows, report = rows_of(write("x.json", content))
    assert report.first_rows.get(TOO_LARGE) == [1] and report.counts[TOO_LARGE] == 1
    assert rows[0]["n"] == 1e308


@pytest.mark.parametrize("cells", [1, 2])
def test_several_lists_of_rows_are_not_joined_as_columns(write, tmp_path, cells):
    rows = [{"t": f"l {i}"} for i in range(cells)]
    path = write("splits.json", json.dumps({"train": rows, "test": rows}))
    with pytest.raises(BasiscopeError, match=r"several lists of objects \('train', 'test'\)"):
        rows_of(path)
    columns = {"t": ["l 0", "l 1"], "meta": [{"a": 1}, {"a": 2}]}
    assert rows_of(write("columns.json", json.dumps(columns)))[0][1] == {"t": "l 1", "meta": {"a": 2}}


def test_an_array_is_not_held_in_memory(write, monkeypatch):
    monkeypatch.setattr(readers, "WINDOW", 64)
    rows = [{"t": "é\u2028😀" * (i % 40), "n": [i, -1.5e-7, True, None]} for i in range(500)]
    path = write("x.json", json.dumps(rows, ensure_ascii=False, indent=1))
    assert rows_of(path)[0] == rows
    content = path.open("rb")
    values = readers._Values(path, content)
    assert max(len(values._buffer) for _ in values) < 64 + 2 * max(len(json.dumps(row, indent=1)) for row in rows)


@pytest.mark.parametrize(
    ("ending", "pack"),
    [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", pa.Codec("zstd").compress)],
)
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv"])
def test_compressed_files_are_read(write, ending, pack, kind):
    text = {".csv": "t\nl 0\nl 1\n", ".json": json.dumps(TWO)}.get(kind, "\n".join(map(json.dumps, TWO)))
    packed = bytes(memoryview(pack(text.encode())))
    assert rows_of(write(f"x{kind}{ending}", packed))[0] == TWO
    assert rows_of(write(f"y{kind.upper()}{ending.upper()}", packed))[0] == TWO
    for name, content in ((f"cut{kind}{ending}", packed[:-9]), (f"plain{kind}{ending}", text)):
        with pytest.raises(BasiscopeError, match=f"{name}: it cannot be read"):
            rows_of(write(name, content))
    with pytest.raises(BasiscopeError, match=f"give its name the ending {ending}"):
        rows_of(write(f"bare{kind}", packed))


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("x.csv", b"PAR1\x15\x04", "it is a Parquet file"),
        ("x.csv", b"PK\x03\x04", "a zip archive or a spreadsheet"),
        ("x.csv", "a,b\n1,2\n".encode("utf-16-le"), "NUL"),
        ("x.jsonl", "{}".encode("utf-16"), "it is UTF-16; save it as UTF-8"),
        ("x.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "pointer of Git LFS"),
        ("x.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "pointer of Git LFS"),
        ("x.parquet.gz", b"", "compressed inside"),
    ],
)
def test_files_that_are_not_what_their_name_says_are_named(write, name, content, sentence):
    with pytest.raises(BasiscopeError, match=sentence):
        rows_of(write(name, content))


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.json"])
def test_a_row_without_end_is_refused(write, monkeypatch, name):
    monkeypatch.setattr(readers, "LONGEST_ROW", 2**18)
    monkeypatch.setattr(readers, "LONGEST_VALUE", 2**18)
    start = {"x.csv": "a\n", "x.json": '[{"a": "'}.get(name, '{"a": "')
    with pytest.raises(BasiscopeError, match="longer than 262,144"):
        rows_of(write(name, start + "x" * 2**20))


# --- splits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train/a.jsonl", "test/a.jsonl"], ["test", "train"]),
        (["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "data/dev-00000-of-00001.jsonl"],
         ["train", "validation"]),
        (["my_train.csv", "my_dev.csv"], ["train", "validation"]),
        (["c4-train.00000-of-01024.json", "c4-validation.00000-of-00008.json"], ["train", "validation"]),
        (["data/python-00000-of-00001.jsonl", "data/java-00000-of-00001.jsonl"], ["java", "python"]),
        (["a.jsonl", "math-eval.jsonl"], ["others", "test"]),
        (["train.jsonl", "b.jsonl"], None),
        (["constraint.jsonl", "latest.jsonl", "train_test.jsonl"], None),
    ],
)  # fmt: skip
def test_splits_that_are_read_together_are_said(write, tmp_path, names, splits):
    for name in names:
        text = {"csv": "t\nl 0\nl 1\n", "json": json.dumps(TWO)}.get(
            name.rsplit(".")[-1], "\n".join(map(json.dumps, TWO))
        )
        write(name, text)
    rows, report = rows_of(tmp_path)
    assert len(rows) == 2 * len(names)
    if splits is None:
        assert not report.sentences()
        return
    (note,) = report.sentences()
    assert "the folder's splits are read together" in note and all(f"{split} (" in note for split in splits)
    assert rows_of(tmp_path, split="all")[0] == rows and not rows_of(tmp_path, split="all")[1].sentences()
    for split in set(splits) - {"others"}:
        chosen, said = rows_of(tmp_path, split=split)
        assert 0 < len(chosen) < len(rows) and not said.sentences()
    with pytest.raises(BasiscopeError, match=r"it has no split 'other'.*" + sorted(set(splits) - {"others"})[0]):
        rows_of(tmp_path, split="other")


def test_a_split_is_known_by_its_usual_names(write, tmp_path):
    for name in ("train/a.jsonl", "dev/a.jsonl", "test/a.jsonl"):
        write(name, json.dumps({"t": name}))
    assert [row["t"] for row in rows_of(tmp_path, split="validation")[0]] == ["dev/a.jsonl"]
    assert len(rows_of(tmp_path, split="training+val")[0]) == 2
    with pytest.raises(BasiscopeError, match="use --limit"):
        rows_of(tmp_path, split="train[:10]")
    with pytest.raises(BasiscopeError, match="only a hub data set has a config"):
        rows_of(tmp_path, config="main")
    assert len(rows_of(tmp_path / "train", split="train")[0]) == 1  # without names of splits all is train
    with pytest.raises(BasiscopeError, match="has no split 'test'"):
        rows_of(tmp_path / "train", split="test")
    assert rows_of(write("my-test.jsonl", '{"t": 1}'), split="test")[0] == [{"t": 1}]


def test_a_folder_s_json_without_rows_is_left_out(write, tmp_path):
    write("a.jsonl", "\n".join(map(json.dumps, TWO)))
    for name, content in (
        ("info.json", '{"a": {"b": 1}}'),
        ("notes.json", "{ // no JSON"),
        ("n.json", "5"),
        ("e.json", ""),
    ):
        write(name, content)
    rows, report = rows_of(tmp_path)
    assert len(rows) == 2 and len(report.sentences()) == 4
    assert all("left out, it holds no rows" in sentence for sentence in report.sentences())


# --- damage ---------------------------------------------------------------------------------------------

ROWS = [
    {"id": 10**18 + i, "t": f"text {i} “é” 😀 " * (i % 5), "x": i / 7, "n": {"a": [i, None]}, "b": i % 2 == 0}
    for i in range(40)
]


def _table(rows):
    flat = [row | {"n": json.dumps(row["n"])} for row in rows]
    return [list(flat[0]), *([str(value) for value in row.values()] for row in flat)]


def _separated(rows, delimiter):
    quoted = (['"' + cell.replace('"', '""') + '"' for cell in cells] for cells in _table(rows))
    return "\r\n".join(delimiter.join(cells) for cells in quoted).encode()


def _parquet(rows, **options):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, **options)
    return sink.getvalue().to_pybytes()


SEEDS = {
    ".jsonl": "\n".join(json.dumps(row) for row in ROWS).encode(),
    ".ndjson": "\n\n".join(json.dumps(row, ensure_ascii=False, indent=2) for row in ROWS).encode(),
    ".json": json.dumps(ROWS, indent=1, ensure_ascii=False).encode(),
    ".csv": _separated(ROWS, ","),
    ".tsv": _separated(ROWS, "\t"),
    ".parquet": _parquet(ROWS, write_page_checksum=True, compression="zstd"),
}
PACKED = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": pa.Codec("zstd").compress}


def mutate(content, chance):
    """`content` with one to four injuries."""
    content = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(content) + 1)
        kind = chance.randrange(9)
        if kind == 0 and content:
            content[at % len(content)] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del content[at:]
        elif kind == 2:
            del content[at : at + chance.randint(1, 200)]
        elif kind == 3:
            content[at:at] = chance.choice(
                [b'"', b"'", b"\0", b"\xff", b"\\", b"\n", b"\r", b",", b"\t", b"]", b"[", b"{", b"}"]
            )
        elif kind == 4:
            content[at:at] = chance.choice([b"[", b'{"a":', b"x", b'"', b" ", b"1", b"\n"]) * chance.choice(
                [300, 100_000]
            )
        elif kind == 5:
            content[at:at] = content[at : at + chance.randint(1, 2_000)]
        elif kind == 6:
            content[at:at] = chance.randbytes(chance.randint(1, 50))
        elif kind == 7:
            content[at:at] = chance.choice(
                [r"\ud83d", "\u2028", "\ufeff", "1e999", "-", "NaN", "nul", "9" * 5_000]
            ).encode()
        elif chance.random() < 0.2:
            how = chance.choice(["utf-16", "utf-16-le", "utf-32", "cp1252", "utf-8-sig"])
            content = bytearray(content.decode("utf-8", "replace").encode(how, "replace"))
    return bytes(content)


def mutated(chance):
    """(name, content) of a mutated file; sometimes under another's name, and sometimes packed before or after."""
    kind = chance.choice(list(SEEDS))
    content = SEEDS[kind]
    if kind == ".parquet" and chance.random() < 0.5:
        content = _parquet(ROWS[: chance.randint(0, 9)], compression=chance.choice(["none", "snappy", "gzip"]))
    content = mutate(content, chance)
    if chance.random() < 0.1:
        kind = chance.choice(list(SEEDS))
    if chance.random() < 0.2:
        ending, pack = chance.choice(list(PACKED.items()))
        content = bytes(memoryview(pack(content)))
        if chance.random() < 0.5:
            content = mutate(content, chance)
        kind += ending if chance.random() < 0.8 else chance.choice(["", *PACKED])
    return "x" + kind, content


def outcome(path):
    """ "read" where every row is accounted for, or "said"."""
    report = ReadReport()
    source = DataSource(str(path))
    try:
        numbers = [number for number, row in read_rows(source, report) if isinstance(row, dict)]
        kinds = column_kinds(source)
        rows = dict(read_rows(source, ReadReport()))
        for row in rows.values():
            json.dumps([as_kind(value, kinds.get(name, "json")) for name, value in row.items()]).encode()
        preview_rows(source)
    except BasiscopeError as error:
        assert str(error) and len(str(error)) < 2_000 and "Traceback" not in str(error)
        return "said"
    left_out = sum(n for problem, n in report.counts.items() if problem.startswith("left out"))
    assert len(numbers) == len(rows) == len(set(numbers)) and report.rows == len(numbers) + left_out
    return "read"


def test_mutated_files_are_read_or_said(tmp_path):
    """Every row of every file is read or counted, or a sentence says why the file is not read; none takes long."""
    found = Counter()
    for seed in range(MUTATIONS):
        name, content = mutated(random.Random(seed))
        path = tmp_path / name
        path.write_bytes(content)
        start = time.process_time()
        try:
            found[outcome(path), name.split(".")[1]] += 1
        except Exception as error:
            raise AssertionError(f"mutation {seed} of {name}") from error
        assert time.process_time() - start < 10, f"mutation {seed} of {name} takes too long"
        path.unlink()
    print(dict(sorted(found.items())))
    assert {how for how, _ in found} == {"read", "said"} and sum(found.values()) == MUTATIONS


def test_what_is_no_file_is_said(tmp_path, open_folder, as_nobody):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "device.csv").symlink_to("/dev/zero")
    (tmp_path / "loop.json").symlink_to(tmp_path / "loop.json")
    (tmp_path / "gone.parquet").symlink_to(tmp_path / "nowhere")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket.csv"))
        for name in ("pipe.jsonl", "folder.jsonl", "device.csv", "loop.json", "gone.parquet", "socket.csv"):
            with pytest.raises(BasiscopeError, match=rf"{name}"):
                rows_of(tmp_path / name)
        with pytest.raises(BasiscopeError, match="the folder holds none of"):
            rows_of(tmp_path)
    with pytest.raises(BasiscopeError, match="there is no such file"):
        file_digest(str(tmp_path / "pipe.jsonl"))
    (open_folder / "x.csv").write_text("a\n1\n")
    (open_folder / "x.csv").chmod(0)
    with as_nobody(), pytest.raises(BasiscopeError, match=r"x\.csv: it cannot be read"):
        rows_of(open_folder / "x.csv")


def test_bad_rows_keep_their_numbers_in_every_json(write):
    bad = '{"t": "a"}\n5\n{"t": "\\ud83d"}\n{"t": "b"}\n'
    rows, report = rows_of(write("x.jsonl", bad))
    assert report.first_rows == {NOT_OBJECT: [1], SURROGATES: [2]} and len(rows) == 3
    assert rows_of(write("x.json", "[" + bad.strip().replace("\n", ",") + "]"))[1].first_rows == report.first_rows
    assert rows_of(write("x.csv", "a,b\n1\n"))[1].first_rows == {RAGGED: [0]}


# --- by the command -------------------------------------------------------------------------------------


def test_quotas_filters_and_exports_go_by_the_kept_text(write, run_cli, stories, tmp_path):
    ids = [str(1234567890123456780 + i % 3) for i in range(12)]
    lines = [f"word {i},{ids[i]},{'' if i % 4 else i},{('1.10', '1.1')[i % 2]},0{i % 2}" for i in range(12)]
    path = write("x.csv", "\n".join(["t,id,gap,version,code", *lines]))
    space = ("--workspace", tmp_path / "workspace")
    status, out, err = run_cli(
        "recover", "--model", stories, "--data", path, "--text", "t", "--k", 2, "--no-map", *space
    )
    assert status == 0, err
    run = out.split()[-1]
    quotas = f"id={ids[0]}:0.5,version=1.10:0.5,code=00:0.5,gap=8:0.25"
    chosen = ("--baseline", "order", "--budget", 4, "--quota", quotas, "--name", "kept")
    status, _, err = run_cli("select", run, *chosen, "--format", "rows", "--out", tmp_path / "rows", *space)
    assert status == 0, err
    rows = [json.loads(line) for line in (tmp_path / "rows" / "selection.jsonl").read_text().splitlines()]
    assert Counter(row["id"] for row in rows)[int(ids[0])] == 2 and len({row["id"] for row in rows}) > 1
    source = [row for _, row in read_rows(DataSource(str(path)), ReadReport())]
    for row in rows:
        (own,) = (one for one in source if one["t"] == row["t"])
        assert {name: "" if value is None else str(value) for name, value in row.items()} == own
    assert sum(row["version"] == "1.10" for row in rows) == sum(row["gap"] == 8 for row in rows) + 1 == 2


def test_the_command_says_what_is_wrong_with_a_mutated_file(write, run_cli, stories, tmp_path):
    found = Counter()
    for seed in range(max(8, MUTATIONS // 50)):
        name, content = mutated(random.Random(-seed - 1))
        asked = ("recover", "--model", stories, "--data", write(name, content), "--text", "t", "--estimate")
        status, _, err = run_cli(*asked, "--workspace", tmp_path / "workspace")
        assert status in (0, 1) and "Traceback" not in err and "Unexpected error" not in err, (seed, err)
        found[status] += 1
    assert len(found) == 2
