"""The three data tools as a user runs them: the whole way, and what they say about bad input."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megatron_ultralong.data.reading.dataset import PackedDataset
from tests.data.conftest import write_lines

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tool(monkeypatch, capfd):
    """Run a tool in this process: its exit status and what it wrote to stderr."""

    def tool(name, *arguments):
        path = str(ROOT / "tools" / f"{name}.py")
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        monkeypatch.setenv("RAYON_NUM_THREADS", "1")
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
        capfd.readouterr()
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as end:
            return int(end.code or 0), capfd.readouterr().err
        return 0, capfd.readouterr().err

    return tool


@pytest.fixture
def preprocess(tool, tmp_path, tokenizer_folder):
    def preprocess(documents, prefix="c", **options):
        path = write_lines(tmp_path / "in.jsonl", documents) if documents is not None else tmp_path / "in.jsonl"
        flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
        return tool(
            "preprocess_data",
            "--input",
            path,
            "--output-prefix",
            tmp_path / "out" / prefix,
            "--tokenizer-model",
            tokenizer_folder,
            *flags,
        )

    return preprocess


def failed_with(result, sentence):
    status, stderr = result
    last = stderr.strip().splitlines()[-1]
    return status == 2 and last.startswith("error: ") and sentence in last and "Traceback" not in stderr


def test_the_whole_way(tool, preprocess, tmp_path, tokenizer, tokenizer_folder):
    documents = [{"text": f"document {i} " * (20 * (i % 4) + 1), "source": "ab"[i // 10]} for i in range(20)]
    assert preprocess(documents, workers=1)[0] == 0
    corpus, resampled, packed = tmp_path / "out" / "c", tmp_path / "resampled", tmp_path / "packed"
    result = tool(
        "resample_corpus",
        *("--tokens", corpus, "--output", resampled, "--short-below", 60, "--long-above", 100, "--total-tokens", 4000),
    )
    assert result[0] == 0 and json.loads((resampled / "manifest.json").read_text())["unmet"] == []
    result = tool(
        "pack_corpus",
        *("--tokens", corpus, "--output", packed, "--documents", resampled, "--sequence-length", 128),
        *("--tokenizer-model", tokenizer_folder, "--separator", "<s>"),
    )
    assert result[0] == 0
    dataset = PackedDataset(packed)
    listed = np.load(resampled / "document_ids.npy")
    assert json.loads((packed / "manifest.json").read_text())["separator"] == tokenizer.encode("<s>")
    text = tokenizer.decode(np.concatenate([dataset.read(i).tokens for i in range(len(dataset))]).tolist())
    pieces = text.split("<s>")
    assert 0 < len(pieces) <= len(listed)
    assert set(pieces[:-1]) <= {document["text"] for document in documents}
    held_out = ("--held-out", 0.3, "--part", "held-out", "--last-sample", "keep")
    result = tool(
        "pack_corpus",
        *("--tokens", corpus, "--output", tmp_path / "held_out", "--sequence-length", 128),
        *("--tokenizer-model", tokenizer_folder, *held_out),
    )
    assert result[0] == 0
    manifest = json.loads((tmp_path / "held_out" / "manifest.json").read_text())
    assert manifest["resampled"] == {"held_out": 0.3, "part": "held-out"} and 0 < manifest["documents"] < 20


def test_a_line_that_is_not_json(tmp_path, tokenizer_folder):
    (tmp_path / "in.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    command = [sys.executable, ROOT / "tools" / "preprocess_data.py", "--input", tmp_path / "in.jsonl"]
    command += ["--output-prefix", tmp_path / "out" / "c", "--tokenizer-model", tokenizer_folder]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    expected = f"error: {tmp_path}/in.jsonl, line 2: is not JSON (Expecting value); mend or remove the line."
    assert result.returncode == 2 and result.stderr.splitlines()[-1] == expected and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_document_without_the_text_field(preprocess, tmp_path):
    result = preprocess([{"text": "fine"}, {"body": "b"}])
    assert failed_with(result, "line 2: the document has no field 'text' (its fields: body)")
    assert not (tmp_path / "out").exists()


def test_a_missing_input(preprocess, tmp_path):
    assert failed_with(preprocess(None), "in.jsonl: the input is missing")
    assert not (tmp_path / "out").exists()


def test_another_tokenizer_and_other_tokens(tool, preprocess, tmp_path, tokenizer_folder):
    assert preprocess([{"text": "words " * 50}])[0] == 0
    other = tmp_path / "other"
    other.mkdir()
    for path in tokenizer_folder.iterdir():
        (other / path.name).write_text(path.read_text().replace("<|im_end|>", "<|end|>"))
    flags = ("--tokens", tmp_path / "out" / "c", "--sequence-length", 16, "--output", tmp_path / "packed")
    result = tool("pack_corpus", *flags, "--tokenizer-model", other)
    assert failed_with(result, "other/tokenizer.json: is not the tokenizer that made")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "other", "out"]
    assert preprocess([{"text": "words " * 50}], prefix="d")[0] == 0
    (tmp_path / "out" / "d.bin").write_bytes(bytes(len((tmp_path / "out" / "d.bin").read_bytes())))
    result = tool("pack_corpus", *flags[2:], "--tokens", tmp_path / "out" / "d", "--tokenizer-model", tokenizer_folder)
    assert failed_with(result, "d.bin: is not the file that d.json was written for")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "other", "out"]


def test_one_text_field_at_a_time(tool, tmp_path, tokenizer_folder):
    path = write_lines(tmp_path / "in.jsonl", [{"text": "a", "body": "b"}])
    flags = ("--input", path, "--output-prefix", tmp_path / "out" / "c", "--tokenizer-model", tokenizer_folder)
    result = tool("preprocess_data", *flags, "--json-keys", "text", "body")
    assert failed_with(result, "--json-keys text body: is not one field; run once for each, with its own --output-pre")


def test_an_output_that_cannot_be_written(tool, preprocess, tmp_path, tokenizer_folder):
    assert preprocess([{"text": "words " * 50}])[0] == 0
    flags = ("--tokens", tmp_path / "out" / "c", "--sequence-length", 16, "--tokenizer-model", tokenizer_folder)
    result = tool("pack_corpus", *flags, "--output", tmp_path / "in.jsonl" / "packed")
    assert failed_with(result, "in.jsonl/packed: cannot be written (File exists); choose another folder.")
    assert tool("pack_corpus", *flags, "--output", tmp_path / "packed", "--separator", "")[0] == 0
    flags = ("--index", tmp_path / "packed", "--tokenizer-model", tokenizer_folder, "--output")
    result = tool("inspect_data", *flags, tmp_path)
    assert failed_with(result, f"{tmp_path}: cannot be written (Is a directory); free some space or choose another")
    assert tool("inspect_data", *flags, tmp_path / "a.html")[0] == 0


def test_an_evaluation_that_could_not_be_written_is_refused_first(tool, tmp_path):
    (tmp_path / "file").write_text("")
    flags = ("run", "--model", "none", "--task", "needles")
    result = tool("evaluate", *flags, "--output", tmp_path / "file" / "report")
    assert failed_with(result, "report, where nothing can be written; name another folder.")


def test_adopted_decontaminated_and_packed(tool, tmp_path, tokenizer, tokenizer_folder, caplog):
    """Tokens that lie elsewhere, without the document that holds a sample, to packed samples."""
    question = "which of the five rivers does the captain name first in the letter to his sister"
    texts = ["nothing of note " * 40, f"so {question} he asked", "something else " * 50]
    ours, model = tmp_path / "ours", ("--tokenizer-model", tokenizer_folder)
    theirs = ("--input", write_lines(tmp_path / "in.jsonl", [{"text": text} for text in texts]), "--append-eod")
    assert tool("preprocess_data", *theirs, "--output-prefix", tmp_path / "out" / "theirs", *model)[0] == 0
    caplog.set_level("INFO")
    assert tool("preprocess_data", "--adopt", tmp_path / "out" / "theirs", "--output-prefix", ours, *model)[0] == 0
    assert "3 of 3 documents (100.0 %) end with '<|im_end|>' (id 2), which is dropped" in caplog.text
    assert f"The first tokens of {tmp_path}/out/theirs.bin read 'nothing of note" in caplog.text
    samples = write_lines(tmp_path / "bench.jsonl", [{"question": question, "answer": "the Rhine"}])
    clean, packed = tmp_path / "clean", tmp_path / "packed"
    assert tool("decontaminate", "--tokens", ours, "--against", samples, "--output", clean, *model)[0] == 0
    assert "2 of 3 documents" in caplog.text
    options = ("--documents", clean, "--sequence-length", 32, "--last-sample", "keep", "--shuffle-seed", "None")
    assert tool("pack_corpus", "--tokens", ours, "--output", packed, *options, *model)[0] == 0
    dataset = PackedDataset(packed)
    text = tokenizer.decode(np.concatenate([dataset.read(i).tokens for i in range(len(dataset))]).tolist())
    assert text.startswith(f"{texts[0]}<s>{texts[2]}")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ("--adopt", "x", "--append-eod"),
            "--append-eod: has no meaning for --adopt, which takes tokens; leave it out.",
        ),
        (("--adopt", "x", "--input", "y"), "--input: has no meaning for --adopt, which takes tokens; leave it out."),
        (("--adopt", "x"), "--adopt x: x.bin is missing; give the PREFIX of a .bin and .idx, or a .ds."),
        (("--input", "x", "--end-id", "7"), "--end-ids and --end-id: are for --adopt; give that, or leave them out."),
        ((), "--input: names no file; give files of text, or tokens that others wrote with --adopt."),
    ],
)
def test_adopting_and_tokenizing_are_kept_apart(tool, tmp_path, options, sentence):
    result = tool("preprocess_data", *options, "--output-prefix", tmp_path / "c", "--tokenizer-model", "bytes")
    assert failed_with(result, sentence)
