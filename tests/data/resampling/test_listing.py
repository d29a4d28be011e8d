import dataclasses
import errno
import json

import numpy as np
import pytest

from megatron_ultralong.data.resampling.listing import parse_weights, read_documents, write_resampled
from megatron_ultralong.data.resampling.policy import LengthPolicy
from megatron_ultralong.errors import UserError

POLICY = LengthPolicy(short_below=(4,), keep_short=(0.5,), long_above=7)


def test_list_report_and_picture(write_corpus, tmp_path):
    documents = [[1] * n for n in (2, 2, 5, 8, 3, 3)]
    corpus = write_corpus(documents, sources=["web", "web", "web", "web", "books", "books"])
    report = write_resampled(corpus, tmp_path / "out", POLICY, None, 1)
    assert json.loads(json.dumps(report)) == json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert read_documents(tmp_path / "out", corpus).ids.tolist() in (
        [0, 2, 3, 4],
        [0, 2, 3, 5],
        [1, 2, 3, 4],
        [1, 2, 3, 5],
    )
    assert (report["tokens_before"], report["tokens_after"]) == (23, 18)
    assert report["unmet"] == ["source 'books' lacks 3 of 6 tokens: it has no document over 7 tokens to repeat"]
    web, books = report["sources"]
    assert (web["budget"], web["documents_before"], web["documents_after"]) == (17, 4, 3)
    assert (web["dropped_documents"], web["dropped_tokens"], web["repeated_documents"]) == (1, 2, 0)
    assert [(row["from"], row["documents"], row["documents_after"]) for row in web["histogram"]] == [
        (2, 2, 1),
        (4, 1, 1),
        (8, 1, 1),
    ]
    assert books["tokens_after"] == 3
    assert (tmp_path / "out" / "histogram.png").read_bytes().startswith(b"\x89PNG")


def test_repeats_are_counted(write_corpus, tmp_path):
    corpus = write_corpus([[1] * 2] * 16 + [[1] * 8])
    report = write_resampled(corpus, tmp_path / "out", POLICY, None, 1)
    ids = read_documents(tmp_path / "out", corpus).ids
    assert ids.tolist()[-3:] == [16, 16, 16]
    np.save(tmp_path / "saved.npy", ids)
    assert (tmp_path / "saved.npy").read_bytes() == (tmp_path / "out" / "document_ids.npy").read_bytes()
    assert (report["sources"][0]["repeated_documents"], report["sources"][0]["most_repeats"]) == (1, 3)


def test_the_same_seed_gives_the_same_bytes(write_corpus, tmp_path):
    corpus = write_corpus([[1] * (i % 13 + 1) for i in range(100)])
    for name in ("a", "b"):
        write_resampled(corpus, tmp_path / name, POLICY, None, 1)
    for name in ("manifest.json", "document_ids.npy", "histogram.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_nothing_left_is_an_error(write_corpus, tmp_path):
    corpus = write_corpus([[1, 2]])
    with pytest.raises(UserError, match="none of its 1 documents is left by the length policy"):
        write_resampled(corpus, tmp_path / "out", LengthPolicy(keep_short=(0,)), None, 1)
    assert not (tmp_path / "out").exists()


def test_a_list_for_other_tokens_is_refused(write_corpus, tmp_path):
    write_resampled(write_corpus([[1] * 9]), tmp_path / "out", POLICY, None, 1)
    other = write_corpus([[2] * 9], name="other")
    with pytest.raises(UserError, match=r"out: lists documents of tokens .* \w{12}, but .*other has \w{12}; list"):
        read_documents(tmp_path / "out", other)


def test_a_damaged_list_is_refused(write_corpus, tmp_path):
    corpus = write_corpus([[1] * 9] * 2)
    write_resampled(corpus, tmp_path / "out", POLICY, None, 1)
    ids = tmp_path / "out" / "document_ids.npy"
    np.save(ids, np.array([1, 1]))
    with pytest.raises(
        UserError, match=r"ids\.npy: has the fingerprint \w{12}, but its manifest was written for \w{12};"
    ):
        read_documents(tmp_path / "out", corpus)
    np.save(ids, np.array([{}]), allow_pickle=True)
    with pytest.raises(UserError, match=r"document_ids\.npy: cannot be read"):
        read_documents(tmp_path / "out", corpus)
    (tmp_path / "out" / "manifest.json").write_text('{"version": 1}')
    with pytest.raises(UserError, match=r"manifest\.json: has version 1, not 2; list its documents again"):
        read_documents(tmp_path / "out", corpus)


def test_what_was_resampled_is_not_resampled_again(write_corpus, tmp_path):
    corpus = write_corpus([[1] * 9] * 2)
    write_resampled(corpus, tmp_path / "out", POLICY, None, 1)
    listed = read_documents(tmp_path / "out", corpus)
    with pytest.raises(UserError, match=r"--documents: lists what was resampled already; name a folder of tools/dec"):
        write_resampled(corpus, tmp_path / "out", POLICY, None, 1, listed)


def test_weights_as_words(write_corpus, tmp_path):
    assert parse_weights([]) is None
    assert parse_weights(["web=0.5", "a=b=2"]) == {"web": 0.5, "a=b": 2.0}
    for words, sentence in ((["web"], "'web' is not NAME=NUMBER"), (["a=x"], "'a=x' is not"), (["a=1", "a=2"], "two")):
        with pytest.raises(UserError, match=sentence):
            parse_weights(words)
    corpus = write_corpus([[1] * 9] * 4, sources=["web", "web", "books", "books"])
    policy = dataclasses.replace(POLICY, weights={"web": 1, "books": 3})
    report = write_resampled(corpus, tmp_path / "out", policy, 36, 1)
    assert report["weights"] == {"web": 1, "books": 3}
    assert [source["tokens_after"] for source in report["sources"]] == [9, 27]
    assert [source["repeated_tokens"] for source in report["sources"]] == [0, 9]
    assert read_documents(tmp_path / "out", corpus).made_by["weights"] == {"web": 1, "books": 3}


def test_a_folder_with_other_things_is_not_replaced(write_corpus, tmp_path):
    corpus = write_corpus([[1] * 10])
    with pytest.raises(UserError, match=r"holds corpus\.\w+, which would be deleted; name another folder\.$"):
        write_resampled(corpus, tmp_path, POLICY, None, 1)
    assert (tmp_path / "corpus.bin").is_file()


def test_a_full_disk_is_a_sentence(write_corpus, tmp_path, monkeypatch):
    def write(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    corpus = write_corpus([[1] * 8])
    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", write)
    with pytest.raises(UserError, match=r"p: cannot be written \(No space left on device\); free some space"):
        write_resampled(corpus, tmp_path / "p", POLICY, None, 1)
    assert not [path for path in tmp_path.iterdir() if "p." in path.name or path.name == "p"]


def test_longer_documents_may_be_left_out(write_corpus, tmp_path):
    """The list is that of a corpus without them, with ids of the whole one."""
    lengths = [3, 9, 5, 1, 12, 5, 4, 9, 2]
    sources = ["web", "web", "books", "books", "books", "web", "web", "books", "web"]
    kept = [i for i, length in enumerate(lengths) if length <= 5]
    policy = dataclasses.replace(POLICY, keep_short=(1.0,))
    whole = write_corpus([[1] * length for length in lengths], sources=sources, name="whole")
    report = write_resampled(whole, tmp_path / "some", dataclasses.replace(policy, longest=5), 25, 1)
    short = write_corpus([[1] * lengths[i] for i in kept], sources=[sources[i] for i in kept], name="short")
    alone = write_resampled(short, tmp_path / "alone", policy, 25, 1)
    ids = [read_documents(tmp_path / name, corpus).ids for name, corpus in (("some", whole), ("alone", short))]
    assert ids[0].tolist() == np.array(kept)[ids[1]].tolist()
    assert 20 < sum(lengths[i] for i in ids[0]) <= 25
    assert report["longer_documents"] == 3 and report["documents_before"] == 6
    assert report["policy"].pop("longest") == 5 and alone["policy"].pop("longest") is None
    differing = {name for name in report if report[name] != alone[name]}
    assert differing == {"tokens", "tokens_fingerprint", "longer_documents", "fingerprint"}
    for longest, said in ((0, "longest: 0 leaves no document"), (-1, "longest: -1 leaves no document")):
        with pytest.raises(UserError, match=said):
            write_resampled(whole, tmp_path / "none", dataclasses.replace(policy, longest=longest), None, 1)
    with pytest.raises(UserError, match="none of its 1 documents is left by the length policy"):
        long = write_corpus([[1] * 6], name="long")
        write_resampled(long, tmp_path / "none", dataclasses.replace(policy, longest=5), None, 1)
