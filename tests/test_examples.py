import codecs
import csv
import datetime
import gzip
import json
from decimal import Decimal

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from places import CHAT
from transformers import AutoTokenizer

from core.errors import BasiscopeError
from core.examples import (
    Columns,
    DataSource,
    ReadReport,
    as_kind,
    check_columns,
    column_kinds,
    column_paths,
    data_fingerprint,
    field_value,
    kept_columns,
    preview_rows,
    prompt_text,
    read_examples,
    read_rows,
    resolve_template,
    tokenize,
)
from core.source import _load_hub

ROWS = [{"q": "one, two", "a": "1"}, {"q": 'a "quoted"\nline', "a": "2"}, {"q": "drei · 三", "a": "3"}]
SURROGATE_HALF = '{"t": "cut \\ud83d here"}\n'


@pytest.fixture(scope="module")
def tokenizer(stories):
    return AutoTokenizer.from_pretrained(stories)


@pytest.fixture(scope="module")
def chat_tokenizer(stories):
    tokenizer = AutoTokenizer.from_pretrained(stories)
    tokenizer.chat_template = CHAT
    return tokenizer


def rows_of(path, **choices):
    report = ReadReport()
    return [row for _, row in read_rows(DataSource(str(path), **choices), report)], report


def write_table(path, rows):
    def separated(delimiter):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)

    kind = path.suffix
    if kind in (".csv", ".tsv"):
        separated("\t" if kind == ".tsv" else ",")
    elif kind == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


# --- files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"])
def test_every_file_type_gives_the_same_rows(tmp_path, suffix):
    path = write_table(tmp_path / f"rows{suffix}", ROWS)
    assert rows_of(path)[0] == ROWS
    packed = tmp_path / f"packed{suffix}.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    if suffix != ".parquet":  # which is compressed inside
        assert rows_of(packed)[0] == ROWS


def test_a_folder_is_read_by_name_with_the_source_of_every_row(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("b.csv", "a.jsonl", "deep/c.parquet", ".hidden/d.json"):
        write_table(tmp_path / name, ROWS)
    (tmp_path / "notes.md").write_text("not data")
    rows, report = rows_of(tmp_path)
    assert [row["source_file"] for row in rows] == ["a.jsonl"] * 3 + ["b.csv"] * 3 + ["deep/c.parquet"] * 3
    assert report.rows == 9
    write_table(tmp_path / "b.csv", [{"q": "x", "source_file": "its own"}])
    assert rows_of(tmp_path)[0][3]["source_file"] == "its own"


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("x.json", b'{"a": 1}', "holds a JSON dict, expected an array"),
        ("x.json", b'[{"a": 1}', "not a valid JSON array"),
        ("x.parquet", b"PAR1 and nothing", "not a readable Parquet file"),
        ("x.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 999, mtime=0)[:-9], "cannot be read"),
        ("x.jsonl.gz", b"not gzip", "cannot be read"),
        ("x.docx", b"", "is none of"),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BasiscopeError, match=sentence) as error:
        rows_of(tmp_path / name)
    assert name in str(error.value)


def test_a_path_that_is_not_there_and_a_folder_without_data(tmp_path):
    with pytest.raises(BasiscopeError, match="there is no file or folder"):
        rows_of(tmp_path / "none.jsonl")
    with pytest.raises(BasiscopeError, match="the folder holds none of"):
        rows_of(tmp_path)


@pytest.mark.parametrize("path", ["~nosuchuser/rows.jsonl", "Once upon a time " * 300, "/" + "x" * 300])
def test_what_cannot_be_a_path_is_said(path):
    with pytest.raises(BasiscopeError, match=r"there is no file or folder .* that can be read"):
        rows_of(path)


def test_a_folder_that_may_not_be_looked_into_is_passed_over_or_said(open_folder, as_nobody):
    write_table(open_folder / "rows.jsonl", ROWS)
    (open_folder / "closed").mkdir()
    write_table(open_folder / "closed" / "more.jsonl", ROWS)
    source = DataSource(str(open_folder / "closed"))
    for mode in (0o000, 0o444):  # nothing of it may be seen; the names, but nothing of the files
        (open_folder / "closed").chmod(mode)
        with as_nobody():
            assert len(rows_of(open_folder)[0]) == len(ROWS)
            with pytest.raises(BasiscopeError, match=r"no file or folder .*/closed that can be read"):
                preview_rows(source)
    (open_folder / "rows.jsonl").chmod(0o000)
    with as_nobody(), pytest.raises(BasiscopeError, match=r"rows\.jsonl: it cannot be read"):
        data_fingerprint(DataSource(str(open_folder / "rows.jsonl")))


def test_bad_rows_are_counted_with_their_numbers(tmp_path):
    path = tmp_path / "x.jsonl"
    lines = [b'{"t": "fine"}', b"", b"{not json", b"[1, 2]", b'{"t": "caf\xe9"}', b'{"t": "\xef\xbb\xbf in"}']
    path.write_bytes(codecs.BOM_UTF8 + b"\n".join(lines) + b"\n" + SURROGATE_HALF.encode())
    rows, report = rows_of(path)
    assert [row["t"] for row in rows] == ["fine", "caf\ufffd", "\ufeff in", "cut \ufffd here"]
    assert report.rows == 7
    assert dict(report.first_rows) == {
        "left out, a blank line": [1],
        "left out, not valid JSON": [2],
        "left out, not a JSON object": [3],
        "not UTF-8, undecodable bytes replaced": [4],
        "not Unicode, halves of surrogate pairs replaced": [6],
    }
    assert "1 row: left out, not valid JSON (row 2)" in report.sentences()


def test_blank_lines_of_a_csv_file_are_counted_and_keep_their_numbers(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('a,b\n1,2\n\n"two\n\nlines",3\n\n4,5\n')
    report = ReadReport()
    rows = dict(read_rows(DataSource(str(path)), report))
    assert {number: row["a"] for number, row in rows.items()} == {0: "1", 2: "two\n\nlines", 4: "4"}
    assert report.rows == 5 and dict(report.first_rows) == {"left out, a blank line": [1, 3]}


def test_ragged_and_undecodable_csv_rows_are_counted(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(codecs.BOM_UTF8 + b"a,b\n1,2\n1\n1,2,3\nna\xefve,2\n")
    rows, report = rows_of(path)
    assert [row["a"] for row in rows] == ["1", "1", "1", "na\ufffdve"]
    assert rows[2]["_extra"] == ["3"] and rows[1]["b"] is None
    assert report.first_rows["ragged, more or fewer fields than the header"] == [1, 2]
    assert report.first_rows["not UTF-8, undecodable bytes replaced"] == [3]


def test_csv_headers_that_repeat_are_told_apart(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a,b,a,a.1\n1,2,3,4\n")
    assert rows_of(path)[0] == [{"a": "1", "b": "2", "a.1": "3", "a.1.1": "4"}]


def test_a_careless_quote_in_a_csv_row_costs_nothing(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('a,b\n5" pipe,2\n"he said ""hi""",3\n"two\nlines",4\n"three\nlines",5" pipe\n')
    rows, report = rows_of(path)
    assert [row["a"] for row in rows] == ['5" pipe', 'he said "hi"', "two\nlines", "three\nlines"]
    assert rows[-1]["b"] == '5" pipe' and not report.counts


def test_csv_columns_of_numbers_are_numbers(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("n,x,zip,mixed,gap,room\n1,-0.5,007,1,,E10\n-20,2e+30,123,a,4,-e2\n")
    kinds = column_kinds(DataSource(str(path)))
    assert kinds == {"n": "int", "x": "float", "zip": "str", "mixed": "str", "gap": "int", "room": "str"}
    last = rows_of(path)[0][1]
    assert [as_kind(last[name], kind) for name, kind in kinds.items()] == [-20, 2e30, "123", "a", 4, "-e2"]
    assert as_kind("", "int") is None


def test_a_folder_s_other_json_files_are_counted(tmp_path):
    write_table(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "config.json").write_text('{"model_type": "x"}')
    rows, report = rows_of(tmp_path)
    assert len(rows) == len(ROWS) and report.sentences() == ["file config.json left out, it holds no rows"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'a,b\n1,2\n"3,4\n5,6\n', "line 3: a quote is opened there and never closed"),
        (b'a,b\n1,2\n3,"4', "line 3: a quote is opened there and never closed"),
        (b'"a,b\n1,2\n', "line 1: a quote is opened there and never closed"),
        ("a,b\n1,2\n".encode("utf-16"), "it is UTF-16; save it as UTF-8"),
    ],
)
def test_a_csv_file_that_would_be_misread_is_refused(tmp_path, content, sentence):
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    with pytest.raises(BasiscopeError, match=sentence):
        rows_of(path)


def test_dates_and_decimals_are_kept_as_text(tmp_path):
    day, price = datetime.date(2026, 1, 2), Decimal("1.50")
    table = pa.table({"t": ["a"], "day": [day], "price": [price]})
    pq.write_table(table, tmp_path / "x.parquet")
    kinds = column_kinds(DataSource(str(tmp_path / "x.parquet")))
    assert kinds == {"t": "str", "day": "str", "price": "str"}
    assert [as_kind(value, "str") for value in (day, price)] == ["2026-01-02", "1.50"]


def test_not_a_number_is_no_text(write_rows, tokenizer):
    rows = [{"t": float("nan")}, {"t": "fine"}, {"t": None}]
    examples, report = read(write_rows(rows), Columns(text="t"), tokenizer)
    assert [example.text for example in examples] == ["fine"] and report.counts["left out, no text"] == 2


def test_sharegpt_messages_are_messages(write_rows, tokenizer):
    spoken = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes?"}]
    plain = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    found, _ = read(write_rows([{"c": spoken}, {"c": plain}]), Columns(messages="c"), tokenizer)
    assert found[0].text == found[1].text == "User: Hi\n\nAssistant: Yes?"


def test_columns_are_checked_before_anything_is_loaded(write_rows):
    source = DataSource(str(write_rows([{"a": 1}, {"a": 2, "b": {"c": "x"}}])))
    check_columns(source, Columns(prompt="a", response="b.c"))
    with pytest.raises(BasiscopeError, match=r"no row has the column 'b.d'. Its columns: a, b, b.c"):
        check_columns(source, Columns(prompt="a", response="b.d"))


def test_a_column_that_is_null_in_every_row_is_said_to_be_empty(write_rows):
    source = DataSource(str(write_rows([{"a": 1}] * 99 + [{"a": 2, "b": None, "c": {"d": None}}])))
    for column in ("b", "c.d"):
        with pytest.raises(BasiscopeError, match=f"the column '{column}' is empty in every row that was read"):
            check_columns(source, Columns(prompt="a", response=column))


def test_a_limit_counts_nothing_beyond_it(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a,b\n1,2\n3,4\n5\n")
    rows, report = rows_of(path, limit=2)
    assert len(rows) == report.rows == 2 and not report.counts
    assert rows_of(path, limit=9)[1].rows == 3
    with pytest.raises(BasiscopeError, match="at least 1"):
        DataSource(str(path), limit=0)


def test_more_than_five_bad_rows_are_shortened():
    report = ReadReport()
    for row in range(1_234):
        report.count("empty", row)
    assert report.sentences() == ["1,234 rows: empty (rows 0, 1, 2, 3, 4, ...)"]


def test_the_fingerprint_follows_content_type_and_names_but_not_place(tmp_path, write_rows):
    path = write_rows(ROWS)
    other = tmp_path / "elsewhere"
    other.mkdir()
    moved = other / "renamed.jsonl"
    moved.write_bytes((tmp_path / "rows.jsonl").read_bytes())
    first = data_fingerprint(DataSource(path))
    assert first == data_fingerprint(DataSource(str(moved)))
    as_folder = data_fingerprint(DataSource(str(other)))
    moved.rename(other / "again.jsonl")  # a folder's rows carry their file's name
    assert as_folder != data_fingerprint(DataSource(str(other))) != first
    assert first != data_fingerprint(DataSource(write_rows(ROWS[:2])))


# --- data sets of the hub -------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """`owner/set` as load_dataset would give it: from a local Parquet file, through the real library."""
    path = write_table(tmp_path / "x.parquet", ROWS)
    real = datasets.load_dataset

    def load(name, config, **options):
        assert name == "owner/set"
        return real("parquet", data_files={"train": str(path)}, cache_dir=str(tmp_path / "cache"), **options)

    monkeypatch.setattr(datasets, "load_dataset", load)
    _load_hub.cache_clear()
    yield "owner/set"
    _load_hub.cache_clear()


def test_a_hub_data_set_is_read_by_split(hub):
    rows, report = rows_of(hub, split="train", limit=2)
    assert rows == ROWS[:2] and report.rows == 2
    assert column_kinds(DataSource(hub, split="train")) == {"q": "str", "a": "str"}
    prints = [data_fingerprint(DataSource(hub, split=split)) for split in ("train", "train[:2]", "train")]
    assert prints[0] == prints[2] != prints[1]  # both splits come from the same cached file
    assert preview_rows(DataSource(hub, split="train[:2]"), 3) == ROWS  # streamed, which knows no slices
    with pytest.raises(BasiscopeError, match="choose a split with --split: train"):
        rows_of(hub)
    with pytest.raises(BasiscopeError, match="test"):
        rows_of(hub, split="test")


@pytest.mark.parametrize("reader", ["text", "json", "csv", "parquet", "pandas", "webdataset", "imagefolder"])
def test_a_reader_of_the_library_is_no_data_set(tmp_path, monkeypatch, reader):
    (tmp_path / "secret.txt").write_text("secret")
    monkeypatch.chdir(tmp_path)
    source = DataSource(reader, split="train")
    for read in (preview_rows, data_fingerprint, lambda source: list(read_rows(source, ReadReport()))):
        with pytest.raises(BasiscopeError, match="no data set but a reader"):
            read(source)


def test_bytes_and_images_of_a_hub_data_set_are_text_or_said(hub, tmp_path):
    features = datasets.Features(q=datasets.Value("string"), b=datasets.Value("binary"), i=datasets.Image())
    image = {"bytes": b"\x89PNG", "path": "a.png"}
    rows = {"q": ["x", "y"], "b": ["é".encode(), b"\xff"], "i": [image, None]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "x.parquet")
    found, report = rows_of(hub, split="train")
    assert found == [{"q": "x", "b": "é", "i": {"bytes": None, "path": "a.png"}}, {"q": "y", "b": None, "i": None}]
    assert {tuple(rows) for rows in report.first_rows.values()} == {(0,), (1,)} and len(report.counts) == 2
    assert column_kinds(DataSource(hub, split="train")) == {"q": "str", "b": "str", "i": "json"}
    assert preview_rows(DataSource(hub, split="train"), 1) == found[:1]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (datasets.exceptions.DatasetNotFoundError("no"), "no such data set on the hub"),
        (ConnectionError("no route"), "the hub cannot be reached"),
        (ValueError("BuilderConfig 'x' not found"), "BuilderConfig 'x' not found"),
        (datasets.exceptions.DatasetGenerationError("broken file"), "broken file"),
    ],
)
def test_what_the_hub_refuses_is_said(monkeypatch, error, sentence):
    def load(*_args, **_options):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)
    _load_hub.cache_clear()
    with pytest.raises(BasiscopeError, match=sentence):
        rows_of("owner/set", split="train")


# --- columns and texts ----------------------------------------------------------------------------------


def read(path, columns, tokenizer, template="auto", **choices):
    report = ReadReport()
    template = resolve_template(template, columns, tokenizer)
    return list(read_examples(DataSource(str(path), **choices), columns, template, tokenizer, report)), report


def pieces(example, tokenizer, max_tokens=512):
    """(prompt tokens, response tokens) of one example, decoded."""
    tokens = tokenize([example], tokenizer, max_tokens, spans=True)[0]
    before = tokenizer.decode(tokens.ids[: tokens.response_token])
    return before, tokenizer.decode(tokens.ids).removeprefix(before)


def test_columns_name_exactly_one_way():
    for choice in ({}, {"text": "a", "prompt": "b"}, {"response": "a"}, {"messages": "a", "response": "b"}):
        with pytest.raises(BasiscopeError, match="give one of --text"):
            Columns(**choice)
    assert Columns(prompt="a", response="b").named() == {"prompt": "a", "response": "b"}


def test_plain_text_gets_the_bos_token_once(write_rows, tokenizer):
    (example,), _ = read(write_rows([{"t": "Once upon a time"}]), Columns(text="t"), tokenizer)
    ids = tokenize([example], tokenizer, 512, spans=False)[0].ids
    assert ids == tokenizer("Once upon a time").input_ids
    assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id


@pytest.mark.parametrize("response", ["Tim ran.", "  spaced", "émoji 🙂 end", "a\n\nb"])
def test_prompt_and_response_meet_at_the_right_token(write_rows, tokenizer, response):
    path = write_rows([{"q": "Who ran?", "a": response}])
    (example,), _ = read(path, Columns(prompt="q", response="a"), tokenizer)
    assert example.text == f"Who ran?\n{response}"
    assert example.text[example.response_start :] == response
    before, after = pieces(example, tokenizer)
    assert before == "<s> Who ran?\n"  # the newline is a token of its own here
    assert after.split() == response.split()  # this tokenizer runs spaces together


def test_a_prompt_alone_has_no_response(write_rows, tokenizer):
    (example,), _ = read(write_rows([{"q": "Who?"}]), Columns(prompt="q"), tokenizer)
    assert (example.text, example.response, example.response_start) == ("Who?", None, None)


MESSAGES = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Who ran?"},
    {"role": "assistant", "content": " Tim ran. "},
]


def test_messages_without_a_template_are_role_paragraphs(write_rows, tokenizer):
    (example,), _ = read(write_rows([{"m": MESSAGES}]), Columns(messages="m"), tokenizer)
    assert example.text == "System: Be kind.\n\nUser: Who ran?\n\nAssistant:  Tim ran. "
    assert example.text[example.response_start :] == " Tim ran. "
    with pytest.raises(BasiscopeError, match="has no chat template"):
        read(write_rows([{"m": MESSAGES}]), Columns(messages="m"), tokenizer, "chat")


def test_messages_with_a_template_have_one_bos_and_find_a_trimmed_response(write_rows, chat_tokenizer):
    (example,), _ = read(write_rows([{"m": MESSAGES}]), Columns(messages="m"), chat_tokenizer)
    assert example.text == "<s>[system]Be kind.\n[user]Who ran?\n[assistant]Tim ran.\n"
    ids = tokenize([example], chat_tokenizer, 512, spans=False)[0].ids
    assert ids.count(chat_tokenizer.bos_token_id) == 1
    assert pieces(example, chat_tokenizer)[1] == "Tim ran.\n"


def test_a_response_is_found_where_the_template_writes_another_generation_prompt(
    write_rows, chat_tokenizer, stories
):
    odd = AutoTokenizer.from_pretrained(stories)
    odd.chat_template = CHAT.replace("[assistant]{% endif", "[assistant]<think>{% endif")
    (example,), _ = read(write_rows([{"m": MESSAGES}]), Columns(messages="m"), odd)
    assert example.text[example.response_start :] == "Tim ran.\n"
    (alone,), _ = read(write_rows([{"m": MESSAGES[2:]}]), Columns(messages="m"), odd)
    assert alone.text[alone.response_start :] == "Tim ran.\n"


def test_the_chat_prompt_ends_with_the_generation_prompt(write_rows, chat_tokenizer):
    path = write_rows([{"q": "Who ran?", "a": "Tim.", "m": MESSAGES}])
    for columns in (Columns(prompt="q", response="a"), Columns(prompt="q"), Columns(text="q")):
        (example,), _ = read(path, columns, chat_tokenizer, "chat-prompt")
        assert example.text == "<s>[user]Who ran?\n[assistant]" and example.response_start is None
    (example,), _ = read(path, Columns(messages="m"), chat_tokenizer, "chat-prompt")
    assert example.text == "<s>[system]Be kind.\n[user]Who ran?\n[assistant]"
    (example,), _ = read(path, Columns(prompt="q", response="a"), chat_tokenizer, "chat")
    assert example.text == "<s>[user]Who ran?\n[assistant]Tim.\n"


def test_a_template_that_refuses_the_roles_says_so(write_rows, stories):
    strict = AutoTokenizer.from_pretrained(stories)
    strict.chat_template = "{{ raise_exception('only users') }}"
    with pytest.raises(BasiscopeError, match=r"refuses messages with the roles system, user.*only users"):
        read(write_rows([{"m": MESSAGES}]), Columns(messages="m"), strict)


def test_unusable_rows_are_left_out_and_told_apart(write_rows, tokenizer):
    path = write_rows(
        [{"t": "a"}, {"t": None}, {}, {"t": "  "}, {"t": ["x"]}, {"t": {"x": 1}}, {"t": 5}, {"t": 1.5}]
    )
    found, report = read(path, Columns(text="t"), tokenizer)
    assert [(example.example_id, example.text) for example in found] == [(0, "a"), (6, "5"), (7, "1.5")]
    assert report.first_rows == {
        "left out, no text": [1, 2],
        "left out, empty text": [3],
        "left out, text is not text": [4, 5],
    }
    bad = [{"m": [{"role": "user"}]}, {"m": "hello"}, {"m": []}, {"m": MESSAGES}]
    _, report = read(write_rows(bad), Columns(messages="m"), tokenizer)
    assert report.first_rows["left out, messages are not a list of {role, content} or {from, value}"] == [0, 1, 2]


def test_a_missing_column_lists_the_columns(write_rows, tokenizer):
    path = write_rows([{"id": 1, "solution": {"steps": ["x"], "by": "me"}}])
    with pytest.raises(BasiscopeError, match=r"'question'.* id, solution, solution\.steps, solution\.by"):
        read(path, Columns(prompt="question"), tokenizer)
    with pytest.raises(BasiscopeError, match=r"no usable example in 1 rows \(1 row: left out, empty text"):
        read(write_rows([{"t": ""}]), Columns(text="t"), tokenizer)
    with pytest.raises(BasiscopeError, match="it is empty"):
        read(write_rows([]), Columns(text="t"), tokenizer)


def test_dotted_paths():
    row = {"a": {"b": [{"c": 1}], "x.y": 2}, "a.d": 3}
    assert [field_value(row, path) for path in ("a.b.0.c", "a.d", "a.b.9", "a.b.c", "z")] == [
        1,
        3,
        None,
        None,
        None,
    ]
    assert column_paths([row, {"e": 1}]) == ["a", "a.b", "a.x.y", "a.d", "e"]


def test_over_long_texts_are_cut_and_say_so(write_rows, tokenizer):
    (example,), _ = read(
        write_rows([{"q": "a b c d e f g", "a": "x"}]), Columns(prompt="q", response="a"), tokenizer
    )
    whole, cut = (tokenize([example], tokenizer, limit, spans=True)[0] for limit in (512, 4))
    assert cut.ids == whole.ids[:4] and cut.was_cut and not whole.was_cut
    assert cut.response_token >= len(cut.ids)  # the response is beyond the cut


def test_original_columns_keep_kind_and_name(write_rows):
    rows = [
        {"text": "a", "n": 1, "x": 1, "flag": True, "nested": {"a": [1]}, "mixed": 1, "big": 2**70, "none": None},
        {
            "text": "b",
            "n": 2,
            "x": 0.5,
            "flag": None,
            "nested": [2],
            "mixed": "one",
            "big": 1,
            "data_text": "kept",
        },
    ]
    kinds = column_kinds(DataSource(write_rows(rows)))
    assert kinds == {
        "data_text": "str",
        "n": "int",
        "x": "json",
        "flag": "bool",
        "nested": "json",
        "mixed": "json",
        "big": "json",
        "none": "str",
        "data_data_text": "str",
    }
    assert kept_columns(rows[1])["data_text"] == "b" and kept_columns(rows[1])["data_data_text"] == "kept"
    assert as_kind({"a": ["ü"]}, "json") == '{"a": ["ü"]}' and as_kind(1, "float") == 1.0


# --- the real files -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "columns", "n"),
    [
        ("gsm8k/train.jsonl", {"prompt": "question", "response": "answer"}, 7_473),
        ("gsm8k/model_solutions.jsonl", {"prompt": "question", "response": "6b_finetuning.solution"}, 1_319),
        ("math/math500.jsonl", {"prompt": "problem", "response": "solution"}, 500),
        ("math/math_train_level1.json", {"prompt": "problem", "response": "solution"}, 564),
        ("math/college_math.jsonl", {"text": "question"}, 2_818),
        ("concepts/cities.csv", {"text": "statement"}, 1_496),
        ("concepts/truthfulqa.csv", {"prompt": "Question", "response": "Best Answer"}, 817),
        ("sft/t0_by_source", {"prompt": "prompt", "response": "completion"}, 2_833),
    ],
)
def test_the_real_files_load_whole(data_folder, tokenizer, file, columns, n):
    found, report = read(data_folder / file, Columns(**columns), tokenizer)
    assert report.rows == n == len(found) + sum(v for k, v in report.counts.items() if k.startswith("left out"))
    assert len(found) >= 0.99 * n
    assert all(example.text.endswith(example.response or "") for example in found)
    assert preview_rows(DataSource(str(data_folder / file)), 3) == [example.columns for example in found[:3]]


def test_the_t0_folder_names_its_sources(data_folder):
    path = str(data_folder / "sft" / "t0_by_source")
    sources = {row["source_file"] for _, row in read_rows(DataSource(path), ReadReport())}
    assert len(sources) == 15 and all(name.endswith(".jsonl") for name in sources)


@pytest.mark.parametrize("template", ["plain", "chat"])
@pytest.mark.parametrize("columns", [Columns(prompt="p", response="r"), Columns(messages="m"), Columns(text="p")])
def test_a_prompt_alone_is_the_beginning_of_its_example(write_rows, chat_tokenizer, columns, template):
    said = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Seven."}]
    path = write_rows([{"p": "How many?", "r": "Seven.", "m": said}])
    (example,) = read_examples(DataSource(path), columns, template, chat_tokenizer, ReadReport())
    text, special = prompt_text("How many?", columns.named(), template, chat_tokenizer)
    assert example.text.startswith(text) and special == example.special_tokens
    assert example.response is None or text == example.text[: example.response_start]
