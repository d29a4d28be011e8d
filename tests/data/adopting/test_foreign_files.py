import os
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from megatron_ultralong.data.adopting.foreign_files import find_foreign, read_documents
from megatron_ultralong.errors import UserError
from tests.data.conftest import as_nobody


def build(prefix, dtype=np.uint16, multimodal=False):
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype, multimodal=multimodal)
    builder.add_document(np.array([1, 2, 3], dtype=dtype), [1, 2], [0, 0] if multimodal else None)
    builder.add_document(np.array([4], dtype=dtype), [1], [0] if multimodal else None)
    builder.finalize(f"{prefix}.idx")


def edit(place, value):
    def damage(folder):
        content = bytearray((folder / "a.idx").read_bytes())
        content[place : place + len(value)] = value
        (folder / "a.idx").write_bytes(content)

    return damage


def cut(name, size):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (cut("a.bin", 6), r"a\.bin: holds 6 bytes where a\.idx describes 8; write it again"),
        (cut("a.idx", 90), r"a\.idx: holds 90 bytes where its counts describe 94; write it again"),
        (cut("a.idx", 0), r"a\.idx: does not begin as the index of an IndexedDataset"),
        (edit(0, b"TNTIDX\0\0"), r"a\.idx: is of the older 'lazy' or 'cached' format; convert it"),
        (edit(0, b"parquet!"), r"a\.idx: does not begin as the index of an IndexedDataset"),
        (edit(9, struct.pack("<Q", 2)), r"a\.idx: version 2 with dtype code 8 is not known"),
        (edit(17, b"\x09"), r"a\.idx: version 1 with dtype code 9 is not known"),
        (edit(17, b"\x07"), r"a\.idx: holds float32, and tokens are one of uint8, uint16, int32, int64"),
        (edit(18, struct.pack("<Q", 4)), r"a\.idx: holds 94 bytes where its counts describe 106"),
        (edit(18, struct.pack("<Q", 0)), r"a\.idx: holds 94 bytes where its counts describe 58"),
        (edit(34, struct.pack("<i", 2)), r"a\.idx: its sequences do not lie one behind the other"),
        (edit(34, struct.pack("<i", -1)), r"a\.idx: its sequences do not lie one behind the other"),
        (edit(86, struct.pack("<q", 2)), r"a\.idx: its documents do not cover its 3 sequences in order"),
    ],
)
def test_damage_is_one_sentence(tmp_path, damage, sentence):
    build(tmp_path / "a")
    (file,) = find_foreign([tmp_path / "a"], tmp_path / "c")
    assert read_documents(file).bounds.tolist() == [0, 3, 4]
    damage(tmp_path)
    with pytest.raises(UserError, match=sentence):
        read_documents(file)


def test_other_kinds_of_data_are_named(tmp_path):
    build(tmp_path / "a", multimodal=True)
    build(tmp_path / "b", dtype=np.int16)
    files = find_foreign([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    with pytest.raises(UserError, match=r"a\.idx: has a mode for each sequence, as multimodal data does"):
        read_documents(files[0])
    with pytest.raises(UserError, match=r"b\.idx: holds int16"):
        read_documents(files[1])


def test_datatroves_damage_is_one_sentence(tmp_path):
    path = tmp_path / "a.ds"
    np.arange(6, dtype="<u2").tofile(path)
    for ends, sentence in (
        ([2, 1, 6], r"a\.ds\.index: is no list of the ends of documents"),
        ([], r"a\.ds: holds 12 bytes where a\.ds\.index describes 0"),
        ([0, 0], r"a\.ds: holds 12 bytes where a\.ds\.index describes 0"),
        ([2, 5], r"a\.ds: holds 12 bytes where a\.ds\.index describes 10"),
        ([2, 12], r"a\.ds\.index: its documents have 12 tokens, which are not 2 or 4 bytes each of the 12"),
    ):
        np.array(ends, dtype="<u8").tofile(f"{path}.index")
        (file,) = find_foreign([path], tmp_path / "c")
        with pytest.raises(UserError, match=sentence):
            read_documents(file)


def test_files_are_found(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("b", "a"):
        build(tmp_path / "in" / name)
    by_folder = find_foreign([tmp_path / "in"], tmp_path / "c")
    assert [(file.tokens.name, file.source) for file in by_folder] == [("a.bin", "in"), ("b.bin", "in")]
    by_glob = find_foreign([tmp_path / "in" / "[ab].*"], tmp_path / "c")
    assert [(file.tokens.name, file.source) for file in by_glob] == [("a.bin", "a"), ("b.bin", "b")]
    for words, sentence in (
        ([tmp_path / "in" / "c"], r"--adopt .*c: .*c\.bin is missing; give the PREFIX"),
        ([tmp_path / "x*"], r"--adopt .*x\*: no file has such a name"),
        ([tmp_path / "in" / "a", tmp_path / "in"], r"--adopt: .*in/a\.bin is reached twice; name it once"),
        ([Path("s3://bucket/tokens")], r"--adopt s3://\.\.\.: tokens are mapped, never fetched; copy them here"),
    ):
        with pytest.raises(UserError, match=sentence):
            find_foreign(words, tmp_path / "c")
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"none: holds no \.idx beside its \.bin and no \.ds"):
        find_foreign([tmp_path / "none"], tmp_path / "c")


def test_a_folders_links_are_followed_once(tmp_path):
    (tmp_path / "web").mkdir()
    (tmp_path / "in" / "books").mkdir(parents=True)
    build(tmp_path / "web" / "w")
    build(tmp_path / "in" / "books" / "b")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "web")
    (tmp_path / "in" / "books" / "back").symlink_to(tmp_path / "in")
    found = find_foreign([tmp_path / "in"], tmp_path / "c")
    assert [(file.tokens.name, file.source) for file in found] == [("b.bin", "books"), ("w.bin", "web")]


def test_a_folder_that_may_not_be_read_is_named():
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o755)
        shut = Path(root, "shut")
        shut.mkdir()
        build(Path(root, "a"))
        shut.chmod(0)
        sentence = r"--adopt: .*/shut cannot be read \(Permission denied\); mend its permissions"
        with as_nobody(), pytest.raises(UserError, match=sentence):
            find_foreign([Path(root)], Path(root, "c"))
        shut.chmod(0o700)


def test_chats_are_not_adopted_without_their_masks(tmp_path):
    for name in ("a", "a.loss_mask"):
        build(tmp_path / name)
    for word in (tmp_path / "a", tmp_path, tmp_path / "*"):
        with pytest.raises(UserError, match=r"--adopt: .*a\.bin is of chats, whose loss mask would be lost; pack"):
            find_foreign([word], tmp_path / "c")
