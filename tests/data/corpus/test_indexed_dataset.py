import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

from megatron_ultralong.data.corpus.indexed_dataset import IndexedWriter, bin_path, idx_path, open_indexed, token_dtype
from megatron_ultralong.errors import UserError

DOCUMENTS = [[5, 6, 7], [65499], [1, 2]]


def write(prefix, dtype="<u2"):
    with bin_path(prefix).open("wb") as stream:
        writer = IndexedWriter(stream, np.dtype(dtype))
        writer.add(np.array([5, 6, 7, 65499]), np.array([3, 1]))
        writer.add(np.array([1, 2]), np.array([2]))
    writer.write_index(idx_path(prefix))
    return prefix


@pytest.mark.parametrize("dtype", ["<u2", "<i4"])
def test_megatron_core_reads_our_files(tmp_path, dtype):
    theirs = IndexedDataset(str(write(tmp_path / "a", dtype)))
    assert [theirs[i].tolist() for i in range(len(theirs))] == DOCUMENTS
    assert theirs[0].dtype == np.dtype(dtype)
    assert theirs.document_indices.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_we_read_megatron_cores_files(tmp_path, dtype):
    builder = IndexedDatasetBuilder(str(tmp_path / "a.bin"), dtype=dtype)
    for document in DOCUMENTS:
        builder.add_document(np.array(document), [len(document)])
    builder.finalize(str(tmp_path / "a.idx"))
    ours = open_indexed(tmp_path / "a")
    assert [ours[i].tolist() for i in range(len(ours))] == DOCUMENTS


def test_our_files_are_megatron_cores_byte_for_byte(tmp_path):
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.uint16)
    for document in DOCUMENTS:
        builder.add_document(np.array(document), [len(document)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    write(tmp_path / "ours")
    for end in ("bin", "idx"):
        assert (tmp_path / f"ours.{end}").read_bytes() == (tmp_path / f"theirs.{end}").read_bytes()


@pytest.mark.parametrize(("vocab_size", "name"), [(1024, "uint16"), (65499, "uint16"), (65500, "int32")])
def test_the_dtype_is_megatron_cores_choice(vocab_size, name):
    assert token_dtype(vocab_size).name == name


def test_a_document_too_long_for_the_format(tmp_path):
    with bin_path(tmp_path / "a").open("wb") as stream, pytest.raises(UserError, match="2147483648 tokens does not"):
        IndexedWriter(stream, np.dtype("<u2")).add(np.zeros(0), np.array([2**31]))


def break_bin(prefix):
    bin_path(prefix).write_bytes(bin_path(prefix).read_bytes()[:-2])


def break_idx(prefix):
    idx_path(prefix).write_bytes(idx_path(prefix).read_bytes()[:-1])


def other_idx(prefix):
    idx_path(prefix).write_bytes(b"x" * 100)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (break_bin, "a.bin: holds 10 bytes where its .idx describes 12; write the tokens again"),
        (break_idx, r"a.idx: is empty or truncated \(101 of 102 bytes\); write the tokens again"),
        (other_idx, "a.idx: is not the index of an IndexedDataset; write the tokens again"),
        (lambda prefix: idx_path(prefix).unlink(), "a.idx: the tokens are missing; write them with"),
    ],
)
def test_damage_is_named(tmp_path, damage, sentence):
    damage(write(tmp_path / "a"))
    with pytest.raises(UserError, match=sentence):
        open_indexed(tmp_path / "a")
