import errno
import json

import numpy as np
import pytest

from megatron_ultralong.data.packing.index import PackOptions, open_packed_index, write_packed_index
from megatron_ultralong.data.resampling.listing import Documents
from megatron_ultralong.errors import UserError

DOCUMENTS = [[10, 11, 12, 13, 14], [20, 21, 22], [30, 31, 32, 33]]


def test_concatenate(write_corpus, tmp_path):
    corpus = write_corpus(DOCUMENTS)
    options = PackOptions(sequence_length=4, separator=(7, 8))
    manifest = write_packed_index(corpus, tmp_path / "sub" / "p", options, Documents(np.array([0, 1, 2, 0]), {}))
    assert (manifest["samples"], manifest["tokens_in_all"], manifest["dropped_tail_tokens"]) == (5, 23, 2)
    assert manifest["tokens"] == "../../corpus" and manifest["separator"] == [7, 8]
    index = open_packed_index(tmp_path / "sub" / "p")
    assert index.document_ids.tolist() == [0, 1, 2, 0]
    assert index.sample_index.tolist() == [[0, 0], [0, 4], [1, 1], [2, 0], [2, 4], [3, 2]]
    assert sorted(path.name for path in index.folder.iterdir()) == [
        "document_ids.npy",
        "manifest.json",
        "sample_index.npy",
    ]


@pytest.mark.parametrize(("overlong", "kept", "lost"), [("drop", [1, 2], 5), ("cut", [0, 1, 2], 1)])
def test_best_fit(write_corpus, tmp_path, caplog, overlong, kept, lost):
    caplog.set_level("INFO")
    options = PackOptions(sequence_length=3, packing="best_fit", overlong=overlong)
    manifest = write_packed_index(write_corpus(DOCUMENTS), tmp_path / "p", options)
    index = open_packed_index(tmp_path / "p")
    assert sorted(index.document_ids.tolist()) == kept
    assert index.sample_index.tolist() == list(range(len(kept) + 1))
    assert (manifest["overlong_documents"], manifest["overlong_tokens"]) == (1, lost)
    assert manifest["padding_tokens"] == 1
    assert "up to           4 tokens:           2 documents,  58.3 % of the tokens" in caplog.text
    assert "up to           8 tokens:           1 documents,  41.7 % of the tokens" in caplog.text
    assert f"padding: 1 tokens, {100 / (4 * len(kept)):.1f} % of the samples" in caplog.text
    assert "1 of 3 documents are" in caplog.text


def test_the_same_seed_gives_the_same_bytes_and_another_order_with_another(write_corpus, tmp_path):
    corpus = write_corpus([[i] * (i % 5 + 1) for i in range(50)])
    for name, seed in (("a", 1), ("b", 1), ("c", 2), ("d", None)):
        write_packed_index(corpus, tmp_path / name, PackOptions(sequence_length=8, shuffle_seed=seed))
    for name in ("manifest.json", "document_ids.npy", "sample_index.npy"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    a, c, d = (open_packed_index(tmp_path / name) for name in "acd")
    assert sorted(a.document_ids) == sorted(c.document_ids) == d.document_ids.tolist() == list(range(50))
    assert a.document_ids.tolist() != c.document_ids.tolist()
    assert a.fingerprint != c.fingerprint


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"sequence_length": 0}, "sequence_length: 0 is no length"),
        ({"sequence_length": 12}, "its 3 documents give 12 tokens, less than one sample of 13; shorten"),
        ({"sequence_length": 2**31}, "sequence_length: 2147483648 is more than 2147483646"),
        ({"sequence_length": 4, "packing": "best_fit", "last_sample": "keep"}, "last_sample: 'keep' has no meaning"),
        ({"sequence_length": 4, "separator": (1000,)}, "separator: id 1000 is not in the vocabulary of 1000"),
        ({"sequence_length": 4, "separator": (1,), "packing": "best_fit"}, "separator: .* leave it empty"),
        ({"sequence_length": 1, "packing": "best_fit"}, "all of its 3 documents are longer than 2 tokens; raise"),
    ],
)
def test_what_cannot_be_packed(write_corpus, tmp_path, options, sentence):
    with pytest.raises(UserError, match=sentence):
        write_packed_index(write_corpus(DOCUMENTS), tmp_path / "p", PackOptions(**options))
    assert not (tmp_path / "p").exists()


def test_other_tokens_than_those_packed_are_refused(write_corpus, tmp_path):
    write_packed_index(write_corpus(DOCUMENTS), tmp_path / "p", PackOptions(sequence_length=4))
    write_corpus([[10, 11, 12, 13, 15], *DOCUMENTS[1:]])
    with pytest.raises(UserError, match=r"p: was packed from tokens with .* \w{12}, but .*corpus has \w{12}; bring"):
        open_packed_index(tmp_path / "p")


def test_an_index_moved_without_its_tokens_says_so(write_corpus, tmp_path):
    write_packed_index(write_corpus(DOCUMENTS), tmp_path / "p", PackOptions(sequence_length=4))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "p").rename(tmp_path / "elsewhere" / "p")
    with pytest.raises(UserError, match=r"elsewhere/p: its tokens are not at .*elsewhere/corpus .*; if one of the two"):
        open_packed_index(tmp_path / "elsewhere" / "p")


def test_a_damaged_index_is_named(write_corpus, tmp_path):
    folder = tmp_path / "p"
    manifest = write_packed_index(write_corpus(DOCUMENTS), folder, PackOptions(sequence_length=4))
    good = (folder / "sample_index.npy").read_bytes()
    np.save(folder / "sample_index.npy", np.zeros((1, 2), dtype=np.int64))
    with pytest.raises(UserError, match=r"sample_index\.npy: has the fingerprint \w{12}, but .* for \w{12}; pack"):
        open_packed_index(folder)
    (folder / "sample_index.npy").write_bytes(good[:50])
    with pytest.raises(UserError, match=r"sample_index\.npy: cannot be read .*; pack again"):
        open_packed_index(folder)
    (folder / "sample_index.npy").unlink()
    with pytest.raises(UserError, match=r"sample_index\.npy: cannot be read .*; pack again"):
        open_packed_index(folder)
    (folder / "sample_index.npy").write_bytes(good)
    (folder / "manifest.json").write_text(json.dumps({**manifest, "documents": 4}))
    with pytest.raises(UserError, match=r"document_ids\.npy: is int64 \[3\] where its manifest describes int64 \[4\]"):
        open_packed_index(folder)
    (folder / "manifest.json").write_text(json.dumps({**manifest, "version": 99}))
    with pytest.raises(UserError, match="has version 99, not 2; pack again"):
        open_packed_index(folder)
    with pytest.raises(UserError, match="the packed index's manifest is missing; pack again"):
        open_packed_index(tmp_path / "none")


def test_an_index_that_is_believed_is_not_read_through(write_corpus, tmp_path):
    masks = [[1] * len(document) for document in DOCUMENTS]
    corpus = write_corpus(DOCUMENTS, masks=masks)
    write_packed_index(corpus, tmp_path / "p", PackOptions(sequence_length=4))
    whole = open_packed_index(tmp_path / "p")
    for path in (*tmp_path.glob("corpus*.bin"), tmp_path / "p" / "document_ids.npy"):
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))  # of the same size
    with pytest.raises(UserError):
        open_packed_index(tmp_path / "p")
    believed = open_packed_index(tmp_path / "p", whole.fingerprint)
    assert (believed.fingerprint, believed.manifest) == (whole.fingerprint, whole.manifest)
    assert believed.corpus.tokens_fingerprint == whole.corpus.tokens_fingerprint
    with pytest.raises(
        UserError, match=r"p: has the fingerprint \w{12} here, but eeeeeeeeeeee on the job's first rank"
    ):
        open_packed_index(tmp_path / "p", "e" * 64)
    next(tmp_path.glob("corpus.bin")).write_bytes(b"")
    with pytest.raises(UserError, match=r"corpus\.bin"):  # a file of another size is still noticed
        open_packed_index(tmp_path / "p", whole.fingerprint)


def test_the_fingerprint_is_of_the_content_wherever_it_lies(write_corpus, tmp_path):
    corpus = write_corpus(DOCUMENTS)
    prints = []
    for name, options in (("a", {}), ("deep/down/b", {}), ("c", {"separator": (7,)})):
        write_packed_index(corpus, tmp_path / name, PackOptions(sequence_length=4, **options))
        prints.append(open_packed_index(tmp_path / name).fingerprint)
    write_packed_index(corpus, tmp_path / "d", PackOptions(sequence_length=4), Documents(np.arange(3), {"seed": 1}))
    assert prints[0] == prints[1] != prints[2]
    assert open_packed_index(tmp_path / "d").fingerprint not in prints


def test_the_arrays_stay_on_disk(write_corpus, tmp_path):
    write_packed_index(write_corpus(DOCUMENTS), tmp_path / "p", PackOptions(sequence_length=4))
    index = open_packed_index(tmp_path / "p")
    tokens = index.corpus.tokens
    for array in (index.document_ids, index.sample_index, tokens.tokens, tokens.lengths, tokens.offsets):
        assert isinstance(array, np.memmap) and not array.flags.writeable
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "p").iterdir())
    open_packed_index(tmp_path / "p")
    assert sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "p").iterdir()) == before


@pytest.mark.parametrize(
    ("length", "last_sample", "samples", "dropped", "padding"),
    [
        (5, "drop", 2, 1, 0),
        (5, "keep", 3, 0, 4),
        (11, "drop", 1, 0, 0),
        (11, "keep", 1, 0, 0),
        (10, "keep", 2, 0, 9),
        (100, "keep", 1, 0, 89),
    ],
)
def test_the_last_sample_is_kept_or_dropped(write_corpus, tmp_path, length, last_sample, samples, dropped, padding):
    # 12 tokens: a sample of S + 1 and then S for each further one.
    options = PackOptions(sequence_length=length, last_sample=last_sample)
    manifest = write_packed_index(write_corpus(DOCUMENTS), tmp_path / "p", options)
    assert (manifest["samples"], manifest["tokens_in_all"]) == (samples, 12)
    assert (manifest["dropped_tail_tokens"], manifest["padding_tokens"]) == (dropped, padding)


def test_a_folder_with_other_things_is_not_replaced(write_corpus, tmp_path):
    corpus = write_corpus(DOCUMENTS)
    with pytest.raises(UserError, match=r"holds corpus\.\w+, which would be deleted; name another folder\.$"):
        write_packed_index(corpus, tmp_path, PackOptions(sequence_length=4))
    assert (tmp_path / "corpus.bin").is_file()


def test_a_full_disk_is_a_sentence(write_corpus, tmp_path, monkeypatch):
    def save(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    corpus = write_corpus(DOCUMENTS)
    monkeypatch.setattr(np, "save", save)
    with pytest.raises(UserError, match=r"p: cannot be written \(No space left on device\); free some space"):
        write_packed_index(corpus, tmp_path / "p", PackOptions(sequence_length=4))
    assert not [path for path in tmp_path.iterdir() if "p." in path.name or path.name == "p"]
