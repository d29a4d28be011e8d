import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from megatron.core.datasets.indexed_dataset import IndexedDataset

from megatron_ultralong.data.corpus.corpus import open_corpus
from megatron_ultralong.data.tokenizer import cutting, encoders
from megatron_ultralong.data.tokenizer.tokenizer import load_tokenizer
from megatron_ultralong.data.tokenizing import readers, streams
from megatron_ultralong.data.tokenizing.documents import Fields
from megatron_ultralong.data.tokenizing.run import TokenizeOptions, tokenize_corpus
from megatron_ultralong.files import fingerprint
from tests.data.conftest import same_bytes, write_lines


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
    assert (tmp_path / "out" / "c.inputs.tsv").read_text() == "".join(
        f"{fingerprint(path)}\t{path.stat().st_size}\t{path}\n" for path in (text_file, second)
    )
    assert (manifest["inputs"], manifest["inputs_fingerprint"]) == (2, fingerprint(tmp_path / "out" / "c.inputs.tsv"))
    theirs = IndexedDataset(str(tmp_path / "out" / "c"))
    assert all((theirs[i] == corpus.tokens[i]).all() for i in range(10))
    names = ["c.bin", "c.idx", "c.inputs.tsv", "c.json", "c.sources.npy"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names


def test_the_bytes_depend_neither_on_the_cut_nor_on_the_workers_nor_on_gigatoken(
    tmp_path, tokenizer, tokenizer_folder, monkeypatch
):
    documents = [{"text": f"{i} na\u00efve words " * (i % 50), "source": "abc"[i % 3]} for i in range(600)]
    path = write_lines(tmp_path / "in.jsonl", documents)
    second = write_lines(tmp_path / "second.jsonl", documents[:5])
    tokenize_corpus([path, second], tmp_path / "whole", tokenizer, Fields())
    monkeypatch.setattr("megatron_ultralong.data.tokenizing.shards._SHARD_BYTES", 3000)
    monkeypatch.setattr("megatron_ultralong.data.tokenizing.run._ALONE_BYTES", 0)
    two = tokenize_corpus([path, second], tmp_path / "two", tokenizer, Fields(), TokenizeOptions(workers=2))
    assert two["shards"] > 20 and same_bytes(tmp_path / "whole", tmp_path / "two")
    slow = load_tokenizer(tokenizer_folder)
    monkeypatch.setattr(slow, "check_fast", lambda recipe, sample: False)
    tokenize_corpus([path, second], tmp_path / "slow", slow, Fields(), TokenizeOptions(workers=2))
    assert same_bytes(tmp_path / "whole", tmp_path / "slow")
    assert not list(tmp_path.glob("*.parts"))


def test_every_format_gives_the_same_documents(tmp_path, tokenizer):
    texts = ["first one", "zw\u00f6lf", "third " * 500]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    folder = tmp_path / "texts"
    folder.mkdir()
    for i, text in enumerate(texts):
        (folder / f"{i}.txt").write_text(text)
    (folder / ".hidden.txt").write_text("no")
    (folder / "readme.xyz").write_text("no")
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines[:20]) + gzip.compress(lines[20:]))
    (tmp_path / "c.ndjson.zst").write_bytes(zstandard.compress(lines))
    pyarrow.parquet.write_table(
        pyarrow.table({"id": [1, 2, 3], "text": texts}), tmp_path / "d.parquet", row_group_size=2
    )
    names = ["a.jsonl", "b.jsonl.gz", "c.ndjson.zst", "d.parquet", "texts", "[a]*.jsonl"]
    for name in names:
        manifest = tokenize_corpus([tmp_path / name], tmp_path / "out" / name, tokenizer, Fields())
        corpus = open_corpus(tmp_path / "out" / name)
        assert [tokenizer.decode(corpus.tokens[i].tolist()) for i in range(3)] == texts
        assert manifest["inputs"] == (3 if name == "texts" else 1)
    assert open_corpus(tmp_path / "out" / "texts").sources == ("texts",)
    assert open_corpus(tmp_path / "out" / "c.ndjson.zst").sources == ("c",)
    manifest = tokenize_corpus(
        [tmp_path / "a.jsonl"], tmp_path / "out" / "named", tokenizer, Fields(), TokenizeOptions(source="web")
    )
    assert manifest["sources"] == ["web"]


def test_the_histogram_counts_documents_and_tokens_by_source(tmp_path):
    documents = [
        {"text": "x" * n, "source": source} for n, source in [(1, "a"), (2, "a"), (3, "b"), (9, "a"), (15, "a")]
    ]
    path = write_lines(tmp_path / "in.jsonl", documents)
    manifest = tokenize_corpus([path], tmp_path / "c", load_tokenizer("bytes"), Fields())
    assert manifest["length_histogram"] == {
        "tokens_from": [1, 2, 4, 8],
        "documents": {"a": [1, 1, 0, 2], "b": [0, 1, 0, 0]},
        "tokens": {"a": [1, 2, 0, 24], "b": [0, 3, 0, 0]},
    }


def test_an_end_after_each_document(tmp_path, tokenizer):
    path = write_lines(tmp_path / "in.jsonl", [{"text": "a"}, {"text": ""}, {"text": "b c"}])
    tokenize_corpus([path], tmp_path / "c", tokenizer, Fields(), TokenizeOptions(append_eod=True))
    corpus = open_corpus(tmp_path / "c")
    texts = [tokenizer.decode(corpus.tokens[i].tolist()) for i in range(2)]
    assert texts == ["a<|im_end|>", "b c<|im_end|>"]


@pytest.mark.parametrize("fast", [True, False])
def test_a_long_text_is_cut_exactly(tmp_path, tokenizer, tokenizer_folder, monkeypatch, fast):
    """Cut in many pieces, from JSON and from a text file of several blocks, the ids are those of the whole text."""
    text = ("It's 12345 o'clock,  said  \n\n the na\u00efve \u6771\u4eac 'll \t x\r\n" * 40 + "no cut \u6771" * 9) * 5
    text += "\u0416\u0451 \u0432\u0441\u0435, \u6771\u4eac\u3001\u5927\u962a\u3002\u0e40\u0e01\u0e34\u0e14e\u0301" * 200
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    write_lines(tmp_path / "b.jsonl", [{"text": "short"}, {"text": text}, {"text": text[:-1]}, {"text": "end"}])
    monkeypatch.setattr(readers, "_LONG", 2000)
    monkeypatch.setattr(streams, "_BLOCK", 700)
    monkeypatch.setattr(encoders, "PIECE", 100)
    monkeypatch.setattr(cutting.Cuts.pieces, "__defaults__", (100,))
    monkeypatch.setattr(cutting.Cuts.stream, "__defaults__", (100,))
    ours = load_tokenizer(tokenizer_folder)
    if not fast:
        monkeypatch.setattr(ours, "check_fast", lambda recipe, sample: False)
    options = TokenizeOptions(workers=3)
    tokenize_corpus([tmp_path / "a.txt", tmp_path / "b.jsonl"], tmp_path / "c", ours, Fields(), options)
    corpus = open_corpus(tmp_path / "c")
    expected = [tokenizer.encode(each) for each in (text, "short", text, text[:-1], "end")]
    assert [corpus.tokens[i].tolist() for i in range(5)] == expected


def test_standard_input(tmp_path):
    tool = Path(__file__).parents[3] / "tools" / "preprocess_data.py"
    command = [sys.executable, tool, "--input", "-", "--output-prefix", tmp_path / "c", "--tokenizer-model", "bytes"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    for text in ("ab", "xy"):
        content = json.dumps({"text": text}).encode() + b"\n"
        done = subprocess.run([*command, "--overwrite"], input=content, env=environment, capture_output=True)
        assert done.returncode == 0, done.stderr
        assert bytes(open_corpus(tmp_path / "c").tokens[0].tolist()).decode() == text
    assert (tmp_path / "c.inputs.tsv").read_text() == f"-\t{len(content)}\t-\n"


def test_chats_with_their_masks(tmp_path, tokenizer):
    path = write_lines(tmp_path / "in.jsonl", [chat("a?", "b!"), chat("c?", "d e")])
    tokenize_corpus([path], tmp_path / "c", tokenizer, Fields())
    corpus = open_corpus(tmp_path / "c")
    assert corpus.kind == "chat" and corpus.loss_mask is not None
    marked = [corpus.tokens[i][corpus.loss_mask[i] == 1].tolist() for i in range(2)]
    assert [tokenizer.decode(ids) for ids in marked] == ["b!<|im_end|>", "d e<|im_end|>"]
    theirs = IndexedDataset(str(tmp_path / "c.loss_mask"))  # keep it: it unmaps its file when collected
    assert theirs[0].tolist() == corpus.loss_mask[0].tolist()
