import json

import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset

from megatron_ultralong.data import tokenize
from megatron_ultralong.data.corpus import open_corpus
from megatron_ultralong.data.documents import Fields
from megatron_ultralong.data.tokenize import tokenize_corpus
from megatron_ultralong.data.tokenizer import load_tokenizer
from megatron_ultralong.errors import UserError


def write_lines(path, documents):
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return path


@pytest.fixture
def text_file(tmp_path):
    documents = [{"text": f"document {i}: " + "word " * (7 * i), "source": "ab"[i % 2]} for i in range(9)]
    documents.insert(3, {"text": "", "source": "empty"})
    return write_lines(tmp_path / "in.jsonl", documents)


def chat(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def test_texts_in_order_with_sources(text_file, tmp_path, tokenizer):
    second = write_lines(tmp_path / "books.jsonl", [{"text": "last"}])
    manifest = tokenize_corpus([text_file, second], tmp_path / "out" / "c", tokenizer, Fields())
    corpus = open_corpus(tmp_path / "out" / "c")
    texts = [tokenizer.decode(corpus.tokens[i].tolist()) for i in range(len(corpus.tokens))]
    assert texts == [f"document {i}: " + "word " * (7 * i) for i in range(9)] + ["last"]
    assert corpus.sources == ("a", "b", "books")
    assert corpus.source_ids().tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0, 2]
    assert manifest["documents"] == 10 and manifest["empty_documents"] == 1 and manifest["kind"] == "text"
    assert manifest["tokens"] == len(corpus.tokens.tokens) and corpus.vocab_size == tokenizer.vocab_size
    assert [entry["bytes"] for entry in manifest["inputs"]] == [text_file.stat().st_size, second.stat().st_size]
    theirs = IndexedDataset(str(tmp_path / "out" / "c"))
    assert all((theirs[i] == corpus.tokens[i]).all() for i in range(10))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["c.bin", "c.idx", "c.json", "c.sources.npy"]


def test_the_bytes_depend_neither_on_batches_nor_on_gigatoken(
    text_file, tmp_path, tokenizer, tokenizer_folder, monkeypatch
):
    tokenize_corpus([text_file], tmp_path / "a", tokenizer, Fields())
    monkeypatch.setattr(tokenize, "_BATCH_CHARACTERS", 50)
    slow = load_tokenizer(tokenizer_folder)
    monkeypatch.setattr(slow, "accelerate", lambda sample: False)
    tokenize_corpus([text_file], tmp_path / "b", slow, Fields())
    for end in ("bin", "idx", "sources.npy", "json"):
        assert (tmp_path / f"a.{end}").read_bytes() == (tmp_path / f"b.{end}").read_bytes()


def test_chats_with_their_masks(tmp_path, tokenizer):
    path = write_lines(tmp_path / "in.jsonl", [chat("a?", "b!"), chat("c?", "d e")])
    tokenize_corpus([path], tmp_path / "c", tokenizer, Fields())
    corpus = open_corpus(tmp_path / "c")
    assert corpus.kind == "chat" and corpus.loss_mask is not None
    marked = [corpus.tokens[i][corpus.loss_mask[i] == 1].tolist() for i in range(2)]
    assert [tokenizer.decode(ids) for ids in marked] == ["b!<|im_end|>", "d e<|im_end|>"]
    theirs = IndexedDataset(str(tmp_path / "c.loss_mask"))  # keep it: it unmaps its file when collected
    assert theirs[0].tolist() == corpus.loss_mask[0].tolist()


@pytest.mark.parametrize(
    ("documents", "complaint"),
    [
        ([], "hold no document; name files of JSON Lines"),
        ([{"text": ""}], "every document is empty"),
        ([{"text": "a"}, chat("b", "c")], "line 2: is a chat, unlike the documents before it"),
        ([chat("b", "c"), {"text": "a"}], "line 2: is no chat, unlike the documents before it"),
        ([chat("b", "c"), {"messages": []}], r"line 2: messages: no message has the role 'assistant' \(roles: none\)"),
        ([{"text": "a"}, {"body": "b"}], r"line 2: the document has no field 'text' \(its fields: body\)"),
    ],
)
def test_bad_input_leaves_nothing_and_the_old_corpus_alone(tmp_path, tokenizer, documents, complaint):
    good = write_lines(tmp_path / "good.jsonl", [{"text": "good"}])
    tokenize_corpus([good], tmp_path / "out" / "c", tokenizer, Fields())
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    bad = write_lines(tmp_path / "bad.jsonl", documents)
    with pytest.raises(UserError, match=complaint):
        tokenize_corpus([bad], tmp_path / "out" / "c", tokenizer, Fields())
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_an_input_is_never_overwritten(tmp_path, tokenizer):
    path = write_lines(tmp_path / "data.json", [{"text": "a"}])
    with pytest.raises(UserError, match=r"data\.json: the output would overwrite this input; choose another"):
        tokenize_corpus([path], tmp_path / "data", tokenizer, Fields())
    assert path.read_text() == '{"text": "a"}\n'


def test_a_corpus_whose_tokens_changed_is_refused(text_file, tmp_path, tokenizer):
    tokenize_corpus([text_file], tmp_path / "c", tokenizer, Fields())
    content = bytearray((tmp_path / "c.bin").read_bytes())
    content[0] ^= 1
    (tmp_path / "c.bin").write_bytes(content)
    with pytest.raises(UserError, match=r"c\.bin: is not the file that c\.json was written for"):
        open_corpus(tmp_path / "c")


def test_a_corpus_without_manifest_is_incomplete(text_file, tmp_path, tokenizer):
    tokenize_corpus([text_file], tmp_path / "c", tokenizer, Fields())
    (tmp_path / "c.json").unlink()
    with pytest.raises(UserError, match=r"c\.json: the corpus manifest is missing; write the tokens again"):
        open_corpus(tmp_path / "c")
