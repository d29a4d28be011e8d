"""megatron-core's own builder and datatrove's own writers make files; what is read of them is what they were given."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

from megatron_ultralong.data.adopting.adopt import AdoptOptions, adopt_files
from megatron_ultralong.data.corpus.corpus import open_corpus
from megatron_ultralong.data.packing.index import PackOptions, write_packed_index
from megatron_ultralong.data.reading.dataset import PackedDataset
from megatron_ultralong.data.tokenizer.tokenizer import load_tokenizer
from megatron_ultralong.errors import UserError

DOCUMENTS = [[5, 6, 7, 8], [], [9, 10], [300], [11, 12, 13]]
END = 2  # <|im_end|>, the small tokenizer's eos_token
OTHER = 0  # <|endoftext|>, special too


def build(prefix, documents, dtype=np.uint16, end=None):
    """As Megatron-LM's preprocess_data.py does: some documents of two sequences, the end id behind the last."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for document in documents:
        ids = document + ([end] if end is not None else [])
        cut = len(ids) // 2
        builder.add_document(np.array(ids, dtype=dtype), [cut, len(ids) - cut] if cut else [len(ids)])
    builder.finalize(f"{prefix}.idx")
    return prefix


def adopt(words, prefix, tokenizer, source="", overwrite=False, **options):
    words = (words,) if isinstance(words, Path) else tuple(words)
    adopt_files(prefix, tokenizer, AdoptOptions(words, **options), source, overwrite)
    corpus = open_corpus(prefix)
    return [corpus.tokens[i].tolist() for i in range(len(corpus.tokens))]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
@pytest.mark.parametrize("end", [None, END, OTHER])
def test_megatron_cores_files(tmp_path, tokenizer, dtype, end):
    build(tmp_path / "a", DOCUMENTS, dtype, end)
    filled = [document for document in DOCUMENTS if document]
    assert adopt(tmp_path / "a", tmp_path / "c", tokenizer) == filled
    assert not (tmp_path / "c.bin").exists()
    manifest = json.loads((tmp_path / "c.json").read_text())
    assert (manifest["documents"], manifest["tokens"], manifest["empty_documents"]) == (4, 10, 1)
    kept = [document + [end] for document in DOCUMENTS] if end is not None else filled
    assert adopt(tmp_path / "a.idx", tmp_path / "k", tokenizer, end_ids="keep") == kept
    assert (
        manifest["tokens_fingerprint"] != json.loads((tmp_path / "k.json").read_text())["tokens_fingerprint"] or not end
    )


def test_the_index_over_one_file_is_megatron_cores_too(tmp_path, tokenizer):
    build(tmp_path / "a", DOCUMENTS, end=END)
    adopt(tmp_path / "a", tmp_path / "c", tokenizer)
    shutil.copyfile(tmp_path / "a.bin", tmp_path / "c.bin")
    theirs = IndexedDataset(str(tmp_path / "c"))
    assert [theirs[i].tolist() for i in range(len(theirs))] == [document for document in DOCUMENTS if document]


def test_several_files_are_one_corpus(tmp_path, tokenizer, caplog):
    """Large enough that they do not share a page; each file's end id is its own matter."""
    rng = np.random.default_rng(0)
    parts = [[rng.integers(3, 400, n).tolist() for n in rng.integers(1, 5000, 40)] for _ in range(3)]
    for i, (part, end) in enumerate(zip(parts, (END, None, OTHER), strict=True)):
        build(tmp_path / "in" / f"{i}", part, end=end)
    caplog.set_level("INFO")
    assert adopt(tmp_path / "in", tmp_path / "c", tokenizer) == [*parts[0], *parts[1], *parts[2]]
    assert open_corpus(tmp_path / "c").sources == ("in",)
    assert "40 of 40 documents (100.0 %) end with '<|im_end|>' (id 2), which is dropped" in caplog.text
    named = adopt([tmp_path / "in" / "2", tmp_path / "in" / "0.bin"], tmp_path / "d", tokenizer)
    assert named == parts[2] + parts[0]
    corpus = open_corpus(tmp_path / "d")
    assert corpus.sources == ("2", "0") and corpus.source_ids().tolist() == [0] * 40 + [1] * 40
    write_packed_index(corpus, tmp_path / "packed", PackOptions(sequence_length=64, separator=(1, 1)))
    dataset = PackedDataset(tmp_path / "packed")
    stream = np.concatenate([dataset[i].tokens for i in range(len(dataset))]).tolist()
    expected = [token for document in named for token in (*document, 1, 1)][:-2]
    assert stream == expected[: len(stream)] and len(expected) - len(stream) <= 64


def test_an_end_id_of_some_documents_is_kept_unless_asked(tmp_path, tokenizer, caplog):
    build(tmp_path / "a", [[5, END], [6, 7], [8, END]])
    assert adopt(tmp_path / "a", tmp_path / "c", tokenizer) == [[5, END], [6, 7], [8, END]]
    assert "2 of 3 documents (66.7 %) end with '<|im_end|>' (id 2), which is kept; pack with" in caplog.text
    assert adopt(tmp_path / "a", tmp_path / "d", tokenizer, end_ids="drop") == [[5], [6, 7], [8]]
    assert adopt(tmp_path / "a", tmp_path / "e", tokenizer, end_ids="drop", end_id="7") == [[5, END], [6], [8, END]]
    assert adopt(tmp_path / "a", tmp_path / "f", tokenizer, end_ids="drop", end_id="<|im_end|>") == [[5], [6, 7], [8]]


def write_ds(path, documents, dtype):
    """datatrove's DocumentTokenizer, by its layout (pipeline/tokens/tokenizer.py, TokenizedFile)."""
    np.concatenate([np.array(document, dtype=dtype) for document in documents]).tofile(path)
    np.cumsum([len(document) for document in documents]).astype("<u8").tofile(f"{path}.index")


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_datatroves_own_format(tmp_path, tokenizer, dtype):
    (tmp_path / "in").mkdir()
    write_ds(tmp_path / "in" / "00000_shuffled.ds", [[*document, END] for document in DOCUMENTS], dtype)
    assert adopt(tmp_path / "in", tmp_path / "c", tokenizer) == [document for document in DOCUMENTS if document]


def test_datatroves_writers(tmp_path, tokenizer, tokenizer_folder):
    """Its own code, as two tasks; the ids are those of our tokenizer."""
    from datatrove.data import Document
    from datatrove.pipeline.tokens import DocumentTokenizer
    from datatrove.pipeline.tokens.megatron_tokenizer import MegatronDocumentTokenizer

    texts = [f"document {i} " + "word " * (3 * i) for i in range(20)]
    name = str(tokenizer_folder / "tokenizer.json")
    options = {"tokenizer_name_or_path": name, "eos_token": "<|im_end|>"}
    for step in (
        MegatronDocumentTokenizer(str(tmp_path / "bin"), **options),
        DocumentTokenizer(str(tmp_path / "ds"), shuffle_documents=False, **options),
    ):
        for rank in range(2):
            data = (Document(text=text, id=str(i)) for i, text in enumerate(texts[rank::2]))
            for _ in step.run(data, rank=rank, world_size=2) or ():
                pass
    expected = [tokenizer.encode(text) for rank in range(2) for text in texts[rank::2]]
    assert adopt(tmp_path / "bin", tmp_path / "c", tokenizer) == expected
    assert adopt(tmp_path / "ds", tmp_path / "d", tokenizer) == expected


def test_files_of_tasks_without_a_document_are_left_out(tmp_path, tokenizer, caplog):
    caplog.set_level("INFO")
    for name, documents in (("0", []), ("1", [[5, 6]]), ("2", [[]])):
        build(tmp_path / "in" / name, documents)
    for name in ("3.ds", "3.ds.index", "4.ds"):
        (tmp_path / "in" / name).touch()
    np.zeros(2, dtype="<u8").tofile(tmp_path / "in" / "4.ds.index")
    assert adopt(tmp_path / "in", tmp_path / "c", tokenizer) == [[5, 6]]
    assert "4 of 5 files hold no token and are left out" in caplog.text
    with pytest.raises(UserError, match="--adopt: no document has a token"):
        adopt(tmp_path / "in" / "0", tmp_path / "d", tokenizer)


def test_again_and_otherwise(tmp_path, tokenizer):
    build(tmp_path / "a", DOCUMENTS)
    adopt(tmp_path / "a", tmp_path / "c", tokenizer)
    written = (tmp_path / "c.json").stat().st_mtime_ns
    adopt(tmp_path / "a", tmp_path / "c", tokenizer)
    assert (tmp_path / "c.json").stat().st_mtime_ns == written
    with pytest.raises(UserError, match=r"c\.json: exists already, of other files or made with other options; choose"):
        adopt(tmp_path / "a", tmp_path / "c", tokenizer, source="web")
    adopt(tmp_path / "a", tmp_path / "c", tokenizer, source="web", overwrite=True)
    assert open_corpus(tmp_path / "c").sources == ("web",)
    (tmp_path / "d.idx").write_bytes(b"")
    with pytest.raises(UserError, match=r"d\.idx: exists already, and no d\.json says"):
        adopt(tmp_path / "a", tmp_path / "d", tokenizer)
    with pytest.raises(UserError, match=r"--output-prefix .*a: would overwrite .*a\.idx"):
        adopt(tmp_path / "a", tmp_path / "a", tokenizer, overwrite=True)
    build(tmp_path / "in" / "a", DOCUMENTS)
    with pytest.raises(UserError, match=r"would overwrite"):
        adopt(tmp_path / "in", tmp_path / "in" / "a", tokenizer, overwrite=True)
    assert (tmp_path / "a.bin").exists()


def change(path):
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: (folder / "in" / "1.bin").rename(folder / "b.bin"), r"in/1\.bin: the adopted tokens cannot be"),
        (lambda folder: (folder / "in" / "1.bin").write_bytes(b"12"), r"in/1\.bin: holds 2 bytes and held 20 when it"),
        (lambda folder: change(folder / "in" / "1.bin"), r"in/1\.bin: is not the file that was adopted"),
        (lambda folder: (folder / "c.idx").unlink(), r"c\.idx: the index of the adopted tokens is missing; bring"),
        (lambda folder: change(folder / "c.idx"), r"c\.idx: is not the index of an IndexedDataset"),
        (lambda folder: (folder / "c.inputs.tsv").write_text("x\n"), r"c\.inputs\.tsv: the list of the adopted files"),
        (
            lambda folder: (folder / "c.inputs.tsv").write_text(
                (folder / "c.inputs.tsv").read_text().split("\n")[0] + "\n"
            ),
            r"c\.idx: is not the file that c\.json was written for; adopt again",
        ),
    ],
)
def test_what_changed_later_is_named(tmp_path, tokenizer, damage, sentence):
    for i in range(2):
        build(tmp_path / "in" / str(i), DOCUMENTS)
    adopt(tmp_path / "in", tmp_path / "c", tokenizer)
    damage(tmp_path)
    with pytest.raises(UserError, match=sentence):
        open_corpus(tmp_path / "c")


def test_moved_together_they_are_the_same_corpus(tmp_path, tokenizer):
    build(tmp_path / "one" / "in" / "a", DOCUMENTS)
    adopt(tmp_path / "one" / "in" / "a", tmp_path / "one" / "c", tokenizer)
    before = open_corpus(tmp_path / "one" / "c").tokens_fingerprint
    (tmp_path / "one").rename(tmp_path / "two")
    assert open_corpus(tmp_path / "two" / "c").tokens_fingerprint == before


def test_an_id_beyond_the_vocabulary_is_named(tmp_path, tokenizer):
    build(tmp_path / "a", [*DOCUMENTS, [7, 8, tokenizer.vocab_size]])
    with pytest.raises(
        UserError, match=rf"a\.bin: document 5 has the id {tokenizer.vocab_size} at its token 2, and .* has"
    ):
        adopt(tmp_path / "a", tmp_path / "c", tokenizer)
    build(tmp_path / "b", [[7], [-1]], np.int32)
    with pytest.raises(UserError, match=r"b\.bin: document 1 has the id -1 at its token 0"):
        adopt(tmp_path / "b", tmp_path / "c", tokenizer)
    assert not list(tmp_path.glob("c.*"))
    build(tmp_path / "d", [[7]], np.int32)
    with pytest.raises(UserError, match=r"d\.bin: holds int32 and .*a\.bin uint16; adopt them apart"):
        adopt([tmp_path / "a", tmp_path / "d"], tmp_path / "c", tokenizer)


def test_raw_bytes_have_no_special_token(tmp_path):
    build(tmp_path / "a", [[5], [6]], np.uint8)
    assert adopt(tmp_path / "a", tmp_path / "c", load_tokenizer(Path("bytes"))) == [[5], [6]]
