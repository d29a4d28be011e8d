"""Files in every format, and every way that one can be broken."""

import json

import pytest

from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.benchmarks.benchmark_rows import matching_files, read_rows

ROWS = [{"a": "x", "n": 1}, {"a": "\u2028\r", "n": None}]


def test_formats(tmp_path):
    import pyarrow
    import pyarrow.parquet

    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode() + b"\n\n")
    (tmp_path / "a.json").write_text("\n " + json.dumps(ROWS))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for name, word in (("a.jsonl", "line"), ("a.json", "item"), ("a.parquet", "row")):
        rows = list(read_rows(tmp_path / name))
        assert [row.values for row in rows] == ROWS
        assert [(row.index, row.place) for row in rows] == [(i, f"{tmp_path}/{name}, {word} {i + 1}") for i in (0, 1)]


def test_csv(tmp_path):
    path = tmp_path / "qa1_0k.csv"
    path.write_text(',target,output,question\n0,a,"x, ""y""\nz",q\n1,b,,q\n')
    assert [row.values for row in read_rows(path)] == [
        {"": "0", "target": "a", "output": 'x, "y"\nz', "question": "q"},
        {"": "1", "target": "b", "output": "", "question": "q"},
    ]


def test_numbers_and_nans_of_pythons_json(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": NaN, "b": 123456789012345678901234567890}\n')
    assert next(iter(read_rows(path))).values["b"] == 123456789012345678901234567890


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a"\n', r"a\.jsonl, line 2: it is not JSON \(Expecting ':'"),
        ("a.jsonl", b'{"a": 1}{"a": 2}\n', r"line 1: it is not JSON \(Extra data"),
        ("a.jsonl", b"5\n", r"line 1: it is no JSON object; give"),
        ("a.jsonl", b'{"a": "\xff"}\n', r"line 1: it is not UTF-8 \(invalid start byte at byte 7\)"),
        ("a.jsonl", b"\n \n", r"a\.jsonl: there is no row in it; give"),
        ("a.jsonl", b"[" * 200_000, r"a\.jsonl: it is nested too deeply|it is not JSON"),
        ("a.json", b"[1]", r"item 1: it is no JSON object"),
        ("a.json", b"[]", r"there is no row in it"),
        ("a.jsonl", b'{"a": ' + b"1" * 5000 + b"}", r"line 1: it is not JSON \(Exceeds the limit"),
        ("a.csv", b"a,b\n1,2,3\n", r"row 1: it has more cells than the first line"),
        ("a.csv", b"a,b\n\xff,2\n", r"it is no CSV"),
        ("a.csv", b"", r"there is no row in it"),
        ("a.parquet", b"PAR1", r"a\.parquet: it is no Parquet file"),
    ],
)
def test_broken(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        list(read_rows(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_missing_files(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl: cannot be read \(No such file or directory\)"):
        list(read_rows(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match=r"no file in it is called x\*\.jsonl or y; mend it"):
        matching_files(tmp_path, ("x*.jsonl", "y"), "mend it")


def test_fields_are_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"pred": 5, "labels": [], "answers": [{}], "no": None}))
    row = next(iter(read_rows(path, "mend it")))
    assert row.text("no") == ""
    for call, message in (
        (
            lambda: row.text("prediction", "response"),
            r"'prediction' or 'response' is missing \(it has",
        ),
        (lambda: row.text("pred"), r"line 1: 'pred' is 5, and not a text; mend it\."),
        (lambda: row.texts("labels"), r"'labels' is \[\], and not a text or a list"),
        (lambda: row.texts("answers"), r"'answers' is \[\{\}\], and not"),
    ):
        with pytest.raises(UserError, match=message):
            call()
    assert row.texts("labels", empty=True) == () and row.texts("pred") == ("5",)
