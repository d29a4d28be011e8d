"""Who reads what when a run opens its data, and what a run says that finds other data than it left."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_ultralong.config.reading import load_config
from megatron_ultralong.data.corpus import corpus
from megatron_ultralong.data.corpus.corpus import open_corpus
from megatron_ultralong.data.packing import index
from megatron_ultralong.data.packing.index import PackOptions, write_packed_index
from megatron_ultralong.engine import groups
from megatron_ultralong.training import sources
from tests.training.conftest import SEQUENCE_LENGTH, Train
from tests.training.jobs import Job


def _bytes_read() -> int:
    """What this process has asked read() for."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["rchar"])


def _open_on_rank(rank: int, world: int, port: int, config: Path, result: Path) -> None:
    """Open the sources of a run as one rank of it; write down which files were hashed, and how much was read."""
    hashed: list[str] = []
    taken = corpus.fingerprint

    def counted(path: Path) -> str:
        hashed.append(Path(path).name)
        return taken(path)

    corpus.fingerprint = index.fingerprint = counted  # type: ignore[attr-defined]
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    run = load_config(config, ["--parallel.device", "cpu"])
    groups.initialize(run.parallel)
    before = _bytes_read()
    (dataset,) = sources.open_sources(run)
    read = _bytes_read() - before
    tokens = dataset[0].tokens.tolist()
    result.write_text(json.dumps({"hashed": hashed, "read": read, "print": dataset.fingerprint, "tokens": tokens}))
    groups.finalize()


@pytest.mark.gloo
@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts bytes as Linux does")
def test_rank_0_takes_the_fingerprints_and_the_others_believe_it(workspace: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")  # that of `Job`
    results = [tmp_path / f"{rank}.json" for rank in range(3)]
    ranks = [
        context.Process(target=_open_on_rank, args=(rank, 3, port, workspace / "run.toml", result))
        for rank, result in enumerate(results)
    ]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join(120)
    assert [each.exitcode for each in ranks] == [0, 0, 0]
    first, *others = (json.loads(result.read_text()) for result in results)
    assert sorted(first["hashed"]) == ["corpus.bin", "corpus.idx", "document_ids.npy", "sample_index.npy"]
    tokens = (workspace / "corpus.bin").stat().st_size
    assert first["read"] > tokens + (workspace / "hf" / "tokenizer.json").stat().st_size
    for other in others:
        assert other["hashed"] == []
        assert other["read"] < 16_384  # manifests and headers, read in blocks
        assert (other["print"], other["tokens"]) == (first["print"], first["tokens"])


def packed_elsewhere(workspace: Path, folder: Path, seed: int | None) -> Path:
    """The workspace's corpus and an index of it, free to be changed."""
    folder.mkdir(exist_ok=True)
    for path in workspace.glob("corpus.*"):
        shutil.copy(path, folder)
    options = PackOptions(sequence_length=SEQUENCE_LENGTH, shuffle_seed=seed)
    write_packed_index(open_corpus(folder / "corpus"), folder / "packed", options)
    return folder / "packed"


@pytest.mark.gloo
def test_what_rank_0_refuses_stops_every_rank(begin: Callable[..., Job], workspace: Path, tmp_path: Path) -> None:
    packed = packed_elsewhere(workspace, tmp_path / "data", None)
    tokens = tmp_path / "data" / "corpus.bin"
    data = tokens.read_bytes()
    tokens.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    job = begin(2, "--data.sources.0.index", str(packed))
    assert job.statuses() == [2, 2]
    assert "corpus.bin: is not the file that corpus.json was written for" in job.log(0)
    assert "Traceback" not in job.log(0) + job.log(1)


def test_data_of_another_tokenizer_than_the_models(workspace: Path, tmp_path: Path) -> None:
    run = load_config(workspace / "run.toml")
    assert list(sources.tokenizer_problems(run)) == []
    other = load_config(workspace / "run.toml", ["--model.hf", str(tmp_path)])
    (problem,) = sources.tokenizer_problems(other)
    assert problem.startswith(f"{tmp_path}/tokenizer.json: the tokenizer is missing; ")
    for file in (workspace / "hf").glob("tokenizer*"):
        (tmp_path / file.name).write_text(file.read_text().replace("endoftext", "end"))
    (problem,) = sources.tokenizer_problems(other)
    assert f"packed/manifest.json: tokens of another tokenizer than {tmp_path}/tokenizer.json; tokenize" in problem


@pytest.mark.gloo
def test_resuming_onto_an_index_packed_anew_needs_its_word(
    begin: Callable[..., Job], train: Train, workspace: Path, tmp_path: Path
) -> None:
    packed = packed_elsewhere(workspace, tmp_path / "data", 1)
    words = ["--data.sources.0.index", str(packed), "--checkpoint.save", str(tmp_path / "run")]
    train(1, *words, "--train.steps", "1")
    packed_elsewhere(workspace, tmp_path / "data", 2)
    job = begin(1, *words, "--train.steps", "2")
    assert job.statuses() == [2]
    assert "but this run has read 4 samples of the index" in job.log() and "data.repacked" in job.log()
    job = begin(1, *words, "--train.steps", "2", "--data.repacked", "restart")
    assert job.statuses() == [0], job.log()
    assert "packed: was packed anew after 4 samples, and is read from its beginning." in job.log()
    position = json.loads((tmp_path / "run" / "step_000002" / "ultralong.json").read_text())["data"]
    assert [(source["drawn"], source["weight"]) for source in position["sources"]] == [(4, 0.0), (4, 1.0)]


def test_a_rank_imports_no_library_of_tokenizers(workspace: Path) -> None:
    program = """
import sys
sys.argv = ["train", "--config", sys.argv[1], "--train.steps", "1"]
from megatron_ultralong.train import main
main()
print(sorted({"transformers", "tokenizers", "sentencepiece", "tiktoken", "gigatoken"} & sys.modules.keys()))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(workspace / "run.toml")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["[]"]), done.stderr[-3000:]
