"""The backend over plain transformers on one device: what users load is what answers.

A text is read in chunks against a cache of keys and values, and what it has in common with the text before is not read
again, so that samples that share a haystack cost one reading. Logits exist for the positions looked at alone. Short
texts to be judged share forward passes, padded on the right.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from megatron_ultralong.data.tokenizer.chat import ChatTokenizer
from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.backends.answer_stops import StopFinder, decoder
from megatron_ultralong.evaluation.backends.end_tokens import end_tokens
from megatron_ultralong.evaluation.backends.hf import Dtype, LanguageModel, read_info
from megatron_ultralong.evaluation.backends.interface import Answer, Forced, Ids, Judged, Prompt, Refused
from megatron_ultralong.evaluation.backends.prefix_cache import PrefixCache
from megatron_ultralong.evaluation.backends.weights_identity import weights_fingerprint

T = TypeVar("T")

CHUNK = 8_192
"""Tokens of one forward pass, padding included; fewer where its mask would pass `_MASK`."""

_MASK = 1 << 28  # bytes of the mask [chunk, text so far] that transformers makes
_LOGIT_ROWS = 256
"""Positions whose logits exist at the same time."""


class HFBackend:
    """A folder in Hugging Face format; see `interface.Backend`.

    Args:
        folder: the model.
        tokenizer: turns ids into text.
        dtype: precision of weights and activations.
        past_context: texts may be longer than the model's context.
        chunk: tokens of one forward pass at most.

    Raises:
        UserError: what `hf.LanguageModel` finds.
    """

    name = "hf"
    is_writer = True

    def __init__(
        self,
        folder: Path,
        tokenizer: ChatTokenizer,
        dtype: Dtype = "fp32",
        *,
        past_context: bool = False,
        chunk: int = CHUNK,
    ) -> None:
        info = read_info(folder)
        self.context_length: int | None = info.context_length
        self._past_context = past_context
        self.model = LanguageModel(info, dtype)
        self._tokenizer, self._dtype, self._chunk = tokenizer, dtype, chunk
        self._cache = PrefixCache(self.model.config)
        self._ends = end_tokens(info.folder, info.config, tokenizer.tokenizer.hf.eos_token_id)

    def describe(self) -> dict[str, Any]:
        """Folder, weights, dtype and device."""
        device = self.model.device
        return {
            "name": self.name,
            "model": str(self.model.info.folder),
            "weights": weights_fingerprint(self.model.info.folder),
            "dtype": self._dtype,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "rope": self.model.info.rope_scaling,
        }

    def share(self, value: T) -> T:
        """There is one process."""
        return value

    def close(self) -> None:
        """Let go of the cache."""
        self._cache.clear()

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Answer | Refused]]:
        """One after the other, in the order given."""
        for prompt in prompts:
            self._check_length(len(prompt.ids) + prompt.max_new_tokens)
        for index, prompt in enumerate(prompts):
            started = time.monotonic()
            try:
                ids, text, finished = self._continue(prompt)
            except torch.OutOfMemoryError:
                yield index, self._out_of_memory(len(prompt.ids))
                continue
            yield index, Answer(text, ids, finished, time.monotonic() - started)

    def _continue(self, prompt: Prompt) -> tuple[tuple[int, ...], str, bool]:
        """Ids, their text, and whether they ended by themselves."""
        stops = StopFinder(decoder(self._tokenizer), self._ends, prompt.stop)
        chunks = self._chunks(_array(prompt.ids), len(prompt.ids) - 1, prompt.max_new_tokens)
        hidden_nD = collections.deque((hidden_nD[-1:] for _, hidden_nD in chunks), maxlen=1).pop()
        while len(stops.ids) < prompt.max_new_tokens:
            token = int(self.model.logits(hidden_nD).argmax())
            if stops.add(token) or len(stops.ids) == prompt.max_new_tokens:
                break
            hidden_nD = self.model.hidden(torch.tensor([[token]]), self._cache.cache)[0]
            self._cache.read(np.array([token], np.int32))
        return tuple(stops.ids), stops.text(), stops.finished

    @torch.inference_mode()
    def judge(self, prompts: Sequence[Forced]) -> Iterator[tuple[int, Judged | Refused]]:
        """Short texts in batches by length, longer ones one after the other in the order given."""
        for prompt in prompts:
            self._check_length(len(prompt.ids))
        short = [index for index, prompt in enumerate(prompts) if 2 * len(prompt.ids) <= self._chunk]
        for batch in _batches({index: len(prompts[index].ids) for index in short}, self._chunk):
            started = time.monotonic()
            hidden_nD, labels = self._batch_rows([prompts[index] for index in batch])
            rows = iter(self._compare(hidden_nD, labels))
            seconds = (time.monotonic() - started) / len(batch)
            for index in batch:
                yield index, _judged(prompts[index], rows, seconds)
        for index in sorted(set(range(len(prompts))) - set(short)):
            started = time.monotonic()
            try:
                hidden_nD, labels = self._long_rows(prompts[index])
            except torch.OutOfMemoryError:
                yield index, self._out_of_memory(len(prompts[index].ids))
                continue
            rows = iter(self._compare(hidden_nD, labels))
            yield index, _judged(prompts[index], rows, time.monotonic() - started)

    def _batch_rows(self, prompts: Sequence[Forced]) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states [n, D] that predict the answers' tokens, and these int64 [n]; padding is on the right."""
        tokens_BS = torch.zeros(len(prompts), max(len(prompt.ids) for prompt in prompts), dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            tokens_BS[row, : len(prompt.ids)] = torch.from_numpy(_array(prompt.ids))
        places = [(row, position) for row, prompt in enumerate(prompts) for position in _positions(prompt)]
        rows, positions = (torch.tensor(column) for column in zip(*places, strict=True))
        hidden_BSD = self.model.hidden(tokens_BS)
        return hidden_BSD[rows.to(hidden_BSD.device), positions.to(hidden_BSD.device) - 1], tokens_BS[rows, positions]

    def _long_rows(self, prompt: Forced) -> tuple[torch.Tensor, torch.Tensor]:
        """The same of one prompt, read in chunks."""
        ids, positions = _array(prompt.ids), np.array(_positions(prompt))
        found = []
        for first, hidden_nD in self._chunks(ids, int(positions.min()) - 1):
            inside = positions[(positions > first) & (positions <= first + len(hidden_nD))]
            found.append(hidden_nD[torch.from_numpy(inside - 1 - first).to(hidden_nD.device)].clone())
        return torch.cat(found), torch.from_numpy(ids[positions].astype(np.int64))

    def _compare(self, hidden_nD: torch.Tensor, labels: torch.Tensor) -> list[tuple[bool, float]]:
        """For each row whether the label is the argmax, and its log-likelihood."""
        found: list[tuple[bool, float]] = []
        for hidden, label in zip(hidden_nD.split(_LOGIT_ROWS), labels.split(_LOGIT_ROWS), strict=True):
            logits_nV = self.model.logits(hidden)
            label = label.to(logits_nV.device)
            right = (logits_nV.argmax(-1) == label).tolist()
            found += zip(right, (-F.cross_entropy(logits_nV, label, reduction="none")).tolist(), strict=True)
        return found

    @torch.inference_mode()
    def losses(self, ids: Ids, start: int = 1) -> npt.NDArray[np.float32]:
        """The head runs over `_LOGIT_ROWS` positions at a time, and not before `start`."""
        text = _array(ids)
        self._check_length(len(text))
        labels = torch.from_numpy(text.astype(np.int64))
        found = [np.empty(0, np.float32)]
        for first, hidden_nD in self._chunks(text, start - 1):
            begin, end = max(first, start - 1), min(first + len(hidden_nD), len(text) - 1)
            if begin < end:
                rows = self._compare(hidden_nD[begin - first : end - first], labels[begin + 1 : end + 1])
                found.append(np.array([-loss for _, loss in rows], np.float32))
        return np.concatenate(found)

    def _chunks(self, ids: npt.NDArray[np.int32], needed: int, budget: int = 0) -> Iterator[tuple[int, torch.Tensor]]:
        """Hidden states [n, D] by chunks, each with its first position; those from `needed` on are all there."""
        first = self._cache.begin(ids, needed, len(ids) + budget)
        while first < len(ids):
            size = self._chunk if first == 0 else max(min(self._chunk, _MASK // len(ids)), 16)
            chunk = ids[first : first + size]
            hidden_BSD = self.model.hidden(torch.from_numpy(chunk.astype(np.int64))[None], self._cache.cache)
            self._cache.read(chunk)
            yield first, hidden_BSD[0]
            first += len(chunk)

    def _check_length(self, tokens: int) -> None:
        if not self._past_context and tokens > self.model.info.context_length:
            raise UserError(
                f"{self.model.info.folder}: a text of {tokens:,} tokens with its answer is longer than the model's "
                f"context of {self.model.info.context_length:,} (max_position_embeddings); ask for shorter ones, or "
                "give --past-context."
            )

    def _out_of_memory(self, tokens: int) -> Refused:
        self._cache.clear()
        torch.cuda.empty_cache()
        return Refused(
            f"a prompt of {tokens:,} tokens does not fit the device's memory; use more ranks with --backend megatron"
        )


def _positions(prompt: Forced) -> list[int]:
    return [position for first, last in prompt.answers for position in range(first, last)]


def _judged(prompt: Forced, rows: Iterator[tuple[bool, float]], seconds: float) -> Judged:
    """Takes its share of the rows."""
    answers = [[next(rows) for _ in range(first, last)] for first, last in prompt.answers]
    greedy = tuple(all(right for right, _ in answer) for answer in answers)
    return Judged(greedy, tuple(sum(value for _, value in answer) for answer in answers), seconds)


def _batches(lengths: dict[int, int], most: int) -> Iterator[list[int]]:
    """Indexes by ascending length, as many together as `most` tokens allow when padded to the longest."""
    batch: list[int] = []
    for index in sorted(lengths, key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[index] > most:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _array(ids: Ids) -> npt.NDArray[np.int32]:
    return np.asarray(ids, dtype=np.int32)
