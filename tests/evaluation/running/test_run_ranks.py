"""A run by two processes: one writes, both ask the same, and a mistake is raised on both."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.backends.hf_backend import HFBackend
from megatron_ultralong.evaluation.backends.interface import Forced, Prompt
from megatron_ultralong.evaluation.plain_tokenizer import tokenizer_of
from megatron_ultralong.evaluation.running.request import Request
from megatron_ultralong.evaluation.running.whole_run import WholeRun
from tests.ranks import leave


class OfTwo(HFBackend):
    """The same model in every process, as ranks of a job that get the same answers."""

    def __init__(self, *words: Any) -> None:
        super().__init__(*words)
        self.is_writer = dist.get_rank() == 0
        self.asked: list[list[int]] = []

    def share(self, value: Any) -> Any:
        shared = [value]
        dist.broadcast_object_list(shared, src=0)
        return shared[0]

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Any]:
        self.asked += [list(map(int, prompt.ids)) for prompt in prompts]
        return super().generate(prompts)

    def judge(self, prompts: Sequence[Forced]) -> Iterator[Any]:
        self.asked += [list(map(int, prompt.ids)) for prompt in prompts]
        return super().judge(prompts)


def run_on(rank: int, store: str, model: str, request: Request, output: str, report: str) -> None:
    """A run, then one with another seed; what this process asked, and what it was told, goes to a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    tokenizer = tokenizer_of(Path(model), "base")
    backend = OfTwo(Path(model), tokenizer)
    results = WholeRun(request, backend, tokenizer, Path(output), "Tiny", model).run()
    said = ""
    try:
        other = dataclasses.replace(request, seed=7)
        WholeRun(other, backend, tokenizer, Path(output), "Tiny", model).run()
    except UserError as error:
        said = str(error)
    Path(f"{report}{rank}").write_text(json.dumps({"asked": backend.asked, "said": said, "told": bool(results)}))
    leave()


@pytest.mark.gloo
def test_two_processes_agree_on_what_is_left(tmp_path: Path, extended_folder: Path, texts: list[str]) -> None:
    haystack = tmp_path / "texts.jsonl"
    haystack.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    request = Request(
        task=("needles", "needles/several", "perplexity/last_window"),
        lengths=(300, 360),
        depths=3,
        haystack=haystack,
        documents=haystack,
        windows=2,
        stride=64,
        workers=1,
    )
    tokenizer = tokenizer_of(extended_folder, "base")
    alone = HFBackend(extended_folder, tokenizer)
    whole = WholeRun(request, alone, tokenizer, tmp_path / "run", "Tiny", str(extended_folder)).run()
    lines = tmp_path / "run" / "samples.jsonl"
    kept = lines.read_bytes().splitlines(keepends=True)[:5]
    lines.write_bytes(b"".join(kept) + b'{"task": "nee')
    store, report = str(tmp_path / "store"), str(tmp_path / "report")
    mp.spawn(run_on, (store, str(extended_folder), request, str(tmp_path / "run"), report), nprocs=2)
    first, second = (json.loads(Path(f"{report}{rank}").read_text()) for rank in range(2))
    assert len(first["asked"]) == 12 - 5
    assert first["asked"] == second["asked"]
    assert first["said"] == second["said"]
    assert "was begun with seed = 42 and is now asked with 7" in first["said"]
    assert (first["told"], second["told"]) == (True, False)
    assert len(lines.read_bytes().splitlines()) == 12
    again = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [row["score"] for row in again["scores"]] == [row["score"] for row in whole["scores"]]
    assert again["perplexity"] == whole["perplexity"]
