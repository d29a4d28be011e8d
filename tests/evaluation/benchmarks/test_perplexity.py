import math
import tracemalloc
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from megatron_ultralong.data.tokenizer.chat import ChatTokenizer
from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.backends.hf import LanguageModel
from megatron_ultralong.evaluation.benchmarks import perplexity
from megatron_ultralong.evaluation.benchmarks.perplexity import (
    bucket_edges,
    cut_windows,
    perplexity_rows,
    window_losses,
)


class Bytes:
    """One token a byte."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())


@pytest.mark.parametrize(
    ("length", "buckets", "edges"),
    [(2048, 4, [0, 256, 512, 1024, 2048]), (1000, 3, [0, 250, 500, 1000]), (4, 6, [0, 2, 4])],
)
def test_bucket_edges(length: int, buckets: int, edges: list[int]) -> None:
    assert bucket_edges(length, buckets) == edges


def test_windows_do_not_overlap_and_drop_the_rest() -> None:
    windows = cut_windows(["abcdefgh", "xy", "ABCD"], Bytes(), 3, 100)
    assert [bytes(row.tolist()).decode() for row in windows] == ["abc", "def", "ABC"]


def test_windows_are_spread_when_there_are_too_many() -> None:
    windows = cut_windows(["aabbccddeeffgg"], Bytes(), 2, 3)
    assert [bytes(row.tolist()).decode() for row in windows] == ["aa", "cc", "ee"]


def test_held_out_text_takes_four_bytes_a_token() -> None:
    documents = ["x" * 100_000] * 30
    cut_windows(documents[:1], Bytes(), 1000, 3)  # what is imported for it
    tracemalloc.start()
    windows = cut_windows(documents, Bytes(), 1000, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert windows.dtype == torch.int32
    assert peak < 6 * 30 * 100_000  # with one document of Python's ints; all as lists are 8 a token and more


def test_documents_that_are_too_short() -> None:
    with pytest.raises(UserError, match="documents of at least 10 tokens and the longest has 4"):
        cut_windows(["abc", "abcd"], Bytes(), 10, 5)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1024])
def test_losses_in_chunks_are_those_of_one_go(
    chunk: int, model: LanguageModel, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perplexity, "CHUNK", chunk)
    window = torch.randint(512, (100,), generator=torch.Generator().manual_seed(0))
    reference = AutoModelForCausalLM.from_pretrained(model_folder, trust_remote_code=False, dtype=torch.float32)
    with torch.no_grad():
        logits = reference(window[None]).logits[0, :-1]
        loss = reference(window[None], labels=window[None]).loss
    torch.testing.assert_close(window_losses(model, window), F.cross_entropy(logits, window[1:], reduction="none"))
    torch.testing.assert_close(window_losses(model, window).mean(), loss)


def test_rows_cover_every_predicted_token_once(
    model: LanguageModel, tokenizer: ChatTokenizer, texts: list[str]
) -> None:
    windows = cut_windows(texts, tokenizer, 128, 5)
    rows = perplexity_rows(model, windows, bucket_edges(128, 4), "test")
    assert [(row["from"], row["to"], row["tokens"]) for row in rows] == [
        (0, 16, 5 * 15),
        (16, 32, 5 * 16),
        (32, 64, 5 * 32),
        (64, 128, 5 * 64),
    ]
    losses = torch.stack([window_losses(model, window) for window in windows])
    assert rows[0]["perplexity"] == pytest.approx(math.exp(losses[:, :15].mean()), rel=1e-5)
    assert rows[3]["perplexity"] == pytest.approx(math.exp(losses[:, 63:].mean()), rel=1e-5)
