import os

import pytest

from megatron_ultralong.data.tokenizing.parts_folder import RowGroups
from megatron_ultralong.data.tokenizing.shards import plan_shards
from megatron_ultralong.data.tokenizing.streams import line_start, range_lines
from megatron_ultralong.data.tokenizing.walk import find_files
from megatron_ultralong.errors import UserError


def test_files_of_a_folder_in_order_with_its_name_as_source(tmp_path):
    for name in ("web/b.jsonl", "web/a.jsonl.zst", "web/deep/c.txt", "web/.git/d.txt", "web/e.csv", "top.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    found = find_files([tmp_path / "top.json", tmp_path / "web"])
    assert [(os.path.relpath(piece.path, tmp_path), piece.format, piece.source) for piece in found] == [
        ("top.json", "json", "top"),
        ("web/a.jsonl.zst", "jsonl", "web"),
        ("web/b.jsonl", "jsonl", "web"),
        ("web/deep/c.txt", "text", "deep"),
    ]
    assert [piece.source for piece in find_files([f"{tmp_path}/web/*.jsonl"])] == ["b"]
    assert len(find_files([tmp_path / "web"], "text")) == 4  # whatever their endings, but nothing hidden


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("none.jsonl", "none.jsonl: the input is missing; name a file that exists"),
        ("*.ndjson", "ndjson: matches no file"),
        ("a.csv", "a.csv: its ending does not say what is in it"),
        ("folder", "folder: none of its 1 files ends in .jsonl"),
        ("empty", "empty: has no file in it"),
        ("b.parquet", "b.parquet: cannot be read as Parquet"),
    ],
)
def test_inputs_that_are_none(tmp_path, name, sentence):
    for file in ("a.csv", "folder/x.csv", "b.parquet"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as caught:
        plan_shards(find_files([tmp_path / name]), RowGroups(tmp_path))
    assert sentence in str(caught.value)


def test_an_input_named_twice(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(UserError, match="is named twice; name it once"):
        find_files([tmp_path / "a.jsonl", tmp_path])
    with pytest.raises(UserError, match="names no file"):
        find_files([])


def test_large_files_are_cut_and_small_ones_grouped(tmp_path, monkeypatch):
    for name, size in (("a.jsonl", 25), ("b.jsonl", 4), ("c.txt", 4), ("d.txt", 30), ("e.jsonl", 1)):
        (tmp_path / name).write_bytes(b"x" * size)
    files = find_files([tmp_path])
    monkeypatch.setattr("megatron_ultralong.data.tokenizing.shards._SHARD_BYTES", 10)
    shards = plan_shards(files, RowGroups(tmp_path))
    cut = [[(os.path.basename(piece.path), piece.begin, piece.end) for piece in shard.ranges] for shard in shards]
    assert cut == [
        [("a.jsonl", 0, 10)],
        [("a.jsonl", 10, 20)],
        [("a.jsonl", 20, 25), ("b.jsonl", 0, None)],
        [("c.txt", 0, None)],
        [("d.txt", 0, None)],
        [("e.jsonl", 0, None)],
    ]
    assert sum(shard.bytes for shard in shards) == 64
    keys = [shard.key({"tokenizer": "t"}) for shard in shards]
    assert len(set(keys)) == len(keys) and keys == [
        shard.key({"tokenizer": "t"}) for shard in plan_shards(files, RowGroups(tmp_path))
    ]
    monkeypatch.setattr(
        "megatron_ultralong.data.tokenizing.shards._MOST_SHARDS", 3
    )  # 64 bytes in no more than that takes shards of 40
    names = [
        [os.path.basename(piece.path) for piece in shard.ranges] for shard in plan_shards(files, RowGroups(tmp_path))
    ]
    assert names == [["a.jsonl", "b.jsonl", "c.txt"], ["d.txt", "e.jsonl"]]


@pytest.mark.parametrize("size", range(1, 14))
def test_each_line_belongs_to_one_range(tmp_path, size):
    content = b"a\n\nbcd\nefghijkl\n\nm"
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    lines = [
        line
        for begin in range(0, len(content), size)
        for block in range_lines(str(path), begin, min(begin + size, len(content)))
        for line in block
    ]
    assert lines == content.split(b"\n")
    assert [line_start(str(path), i) for i in (1, 2, 3, 4, 8, 17)] == [2, 2, 3, 7, 16, 17]
