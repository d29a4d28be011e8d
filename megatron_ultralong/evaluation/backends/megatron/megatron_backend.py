"""The `megatron` backend: a checkpoint or Hugging Face folder over tensor- and context-parallel ranks, of any length.

Texts are read one after another, in the order in which neighbours begin alike (`reading_order`); of each, only what
follows the common beginning is computed. Every rank runs the same program and gets the same answers; the first
process writes.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from megatron_ultralong.config.sections import ParallelConfig
from megatron_ultralong.context_parallel import kernel_choice
from megatron_ultralong.data.tokenizer.chat import ChatTokenizer
from megatron_ultralong.engine import device as engine_device
from megatron_ultralong.engine import groups
from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.backends.answer_stops import Decode, StopFinder, decoder
from megatron_ultralong.evaluation.backends.end_tokens import end_tokens
from megatron_ultralong.evaluation.backends.interface import Answer, Forced, Ids, Judged, Prompt
from megatron_ultralong.evaluation.backends.megatron.cached_model import CachedModel
from megatron_ultralong.evaluation.backends.megatron.model_source import ModelSource, open_source
from megatron_ultralong.evaluation.backends.megatron.reading_order import reading_order
from megatron_ultralong.evaluation.backends.megatron.serving_layout import check_layout, heads_of
from megatron_ultralong.evaluation.backends.weights_identity import weights_fingerprint
from megatron_ultralong.families.defaults import check_window
from megatron_ultralong.model.build import build_model
from megatron_ultralong.progress import Progress
from megatron_ultralong.training.watchdog import Watchdog

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MegatronOptions:
    """What the backend is made of.

    Attributes:
        load: a Megatron checkpoint of any layout, or a folder in Hugging Face format.
        hf: where a checkpoint's tokenizer lies; None: where the checkpoint says.
        precision: of weights, activations and the cache.
        parallel: `tensor`, `context`, `ulysses`, `kernel`, `device` and `timeout` count; there is no pipeline.
        prefill_chunk: tokens that a rank reads at once, which bounds its activations.
        past_context: answer prompts longer than the model's context too.
    """

    load: Path
    hf: Path | None = None
    precision: Literal["fp32", "bf16"] = "bf16"
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)
    prefill_chunk: int = 4096
    past_context: bool = False


class MegatronBackend:
    """See `interface.Backend`; made by `open_megatron`.

    Args:
        options: what it is made of.
        source: where the model came from.
        model: with its weights.
        ends: ids that end an answer.
        decode: turns answers into text.
        watchdog: of the job, closed with the backend.
    """

    name = "megatron"

    def __init__(
        self,
        options: MegatronOptions,
        source: ModelSource,
        model: CachedModel,
        ends: frozenset[int],
        decode: Decode,
        watchdog: Watchdog | None = None,
    ) -> None:
        self.options, self.source, self.model, self.watchdog = options, source, model, watchdog
        self._ends, self._decode = ends, decode
        self.context_length: int | None = source.context_length
        self.is_writer = dist.get_rank() == 0
        self.weights = weights_fingerprint(source.folder) if self.is_writer else ""

    def describe(self) -> dict[str, Any]:
        """See `interface.Backend`."""
        parallel = self.options.parallel
        return {
            "name": self.name,
            "model": str(self.options.load),
            "weights": self.weights,
            "kind": self.source.kind,
            "step": self.source.step,
            "dtype": self.options.precision,
            "tensor": parallel.tensor,
            "context": parallel.context,
            "ulysses": parallel.ulysses,
            "prefill_chunk": self.options.prefill_chunk,
            "device": engine_device.name(engine_device.current()),
            "versions": {name: importlib.metadata.version(name) for name in ("torch", "megatron-core")},
        }

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Answer]]:
        """See `interface.Backend`. Prompts of a group come one after another."""
        texts = [np.asarray(prompt.ids) for prompt in prompts]
        for place, (ids, prompt) in enumerate(zip(texts, prompts, strict=True)):
            self._check(f"prompt {place}", ids, prompt.max_new_tokens)
            self._check_rope(f"prompt {place}", len(ids) + prompt.max_new_tokens - 1)
        return self._in_order(texts, [prompt.group for prompt in prompts], prompts, self._answer)

    def judge(self, prompts: Sequence[Forced]) -> Iterator[tuple[int, Judged]]:
        """See `interface.Backend`. Prompts of a group come one after another."""
        texts = [np.asarray(prompt.ids) for prompt in prompts]
        for place, ids in enumerate(texts):
            self._check(f"text {place}", ids, 0)
        return self._in_order(texts, [prompt.group for prompt in prompts], prompts, self._judged)

    def losses(self, ids: Ids, start: int = 1) -> npt.NDArray[np.float32]:
        """See `interface.Backend`."""
        text = np.asarray(ids)
        self._check("the text", text, 0)
        if not 1 <= start <= len(text):
            raise UserError(f"start is {start}, of a text of {len(text)} tokens; the first token has no loss.")
        self.model.make_room(len(text))
        _, log_likelihood = self._read_judged(text, np.arange(start - 1, len(text) - 1), "text")
        return -log_likelihood

    def share(self, value: T) -> T:
        """See `interface.Backend`."""
        shared = [value]
        if dist.get_world_size() > 1:
            dist.broadcast_object_list(shared, src=0)
        return shared[0]

    def close(self) -> None:
        """Leave the job; called while an error passes through, it tells the other ranks."""
        self.model.cache = None
        if self.watchdog is not None:
            watchdog, self.watchdog = self.watchdog, None
            kind, error, trace = sys.exc_info()
            watchdog.__exit__(kind, error, trace)

    def _in_order(
        self,
        texts: Sequence[npt.NDArray[np.integer]],
        named: Sequence[str],
        prompts: Sequence[Any],
        ask: Callable[[npt.NDArray[np.integer], Any, str], T],
    ) -> Iterator[tuple[int, T]]:
        if not prompts:
            return
        budgets = [getattr(prompt, "max_new_tokens", 0) for prompt in prompts]
        self.model.make_room(max(len(ids) + budget for ids, budget in zip(texts, budgets, strict=True)))
        for number, index in enumerate(reading_order(texts, named), start=1):
            yield index, ask(texts[index], prompts[index], f"{number} of {len(prompts)}")

    def _answer(self, ids: npt.NDArray[np.integer], prompt: Prompt, which: str) -> Answer:
        begun = time.perf_counter()
        stops = StopFinder(self._decode, self._ends, prompt.stop)
        said = stops.ids
        progress = self._progress(f"prompt {which}", len(ids))
        self._read(ids, len(ids), progress)
        progress(1)
        progress = self._progress(f"answer {which}", prompt.max_new_tokens)
        while len(said) < prompt.max_new_tokens:
            length = len(ids) + len(said)
            if self.model.frequencies(length) != self.model.frequencies(self.model.regime):
                self._read(np.concatenate((ids, said)), length)  # as transformers does for longrope
            token = self.model.next_token(said[-1] if said else int(ids[-1]))
            progress(1)
            if stops.add(token):
                break
        return Answer(stops.text(), tuple(said), stops.finished, time.perf_counter() - begun)

    def _read(self, ids: npt.NDArray[np.integer], length: int, progress: Callable[[int], None] | None = None) -> None:
        """Have all ids but the last in the cache."""
        held = self.model.begin(ids, len(ids) - 1, length)
        progress = progress or self._progress("all again", len(ids))
        progress(held)
        self.model.read(len(ids) - 1, progress=progress)

    def _judged(self, ids: npt.NDArray[np.integer], prompt: Forced, which: str) -> Judged:
        begun = time.perf_counter()
        ranges = [np.arange(first - 1, last - 1) for first, last in prompt.answers]
        places = np.unique(np.concatenate(ranges)) if ranges else np.empty(0, dtype=np.int64)
        right, log_likelihood = self._read_judged(ids, places, f"text {which}")
        parts = [np.searchsorted(places, places_of) for places_of in ranges]
        return Judged(
            tuple(bool(right[part].all()) for part in parts),
            tuple(float(log_likelihood[part].sum(dtype=np.float64)) for part in parts),
            time.perf_counter() - begun,
        )

    def _read_judged(
        self, ids: npt.NDArray[np.integer], places: npt.NDArray[np.int64], label: str
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
        if not len(places):
            return np.empty(0, dtype=np.bool_), np.empty(0, dtype=np.float32)
        stop = int(places[-1]) + 1
        progress = self._progress(label, stop)
        progress(self.model.begin(ids, int(places[0]), len(ids)))
        return self.model.read(stop, places, progress)

    def _progress(self, label: str, total: int) -> Callable[[int], None]:
        """Counts tokens on the first process; it says something only where seconds pass."""
        return Progress(label, total, "tokens").advance if self.is_writer else lambda _: None

    def _check(self, which: str, ids: npt.NDArray[np.integer], budget: int) -> None:
        """Whether a text can be read with a budget for its answer."""
        vocabulary = self.source.hf_config["vocab_size"]
        if not len(ids):
            raise UserError(f"{which}: it has no tokens; a prompt begins with at least one.")
        if ids.min() < 0 or ids.max() >= vocabulary:
            raise UserError(
                f"{which}: it has an id outside of the model's vocabulary of {vocabulary}; take the model's tokenizer."
            )
        length, context = len(ids) + budget, self.source.context_length
        if length > context and not self.options.past_context:
            raise UserError(
                f"{which}: its {len(ids):,} tokens with {budget:,} for the answer are more than the model's context of "
                f"{context:,}; shorten it, or allow lengths past the context."
            )
        check_window(self.source.hf_config, length)

    def _check_rope(self, which: str, length: int) -> None:
        """Refuse a rope that would rotate all that is cached anew for each token."""
        rope = self.source.rope
        if rope.kind == "dynamic-ntk" and length > rope.original_length:
            raise UserError(
                f"{which}: its rope is dynamic, and beyond {rope.original_length:,} tokens each new one changes "
                "the rotation of all before it, which a cache cannot follow; judge it instead, or shorten it."
            )


def open_megatron(options: MegatronOptions, tokenizer: ChatTokenizer) -> MegatronBackend:
    """Join the job's processes, build the model over them, and load its weights; every rank calls it.

    Args:
        options: what it is made of.
        tokenizer: the model's, which turns answers into text.

    Raises:
        UserError: a folder, a layout or a length that cannot be; every mistake of the layout at once.
    """
    if os.environ.get("RANK", "0") != "0":
        logging.getLogger("megatron_ultralong").setLevel(logging.ERROR)  # rank 0 says it
    watchdog = Watchdog(options.parallel.timeout)
    try:
        source = open_source(options.load, options.hf)
        check_layout(options.parallel, source.hf_config, groups.world_size_from_environment(), options.prefill_chunk)
        ends = end_tokens(source.companions, source.hf_config, tokenizer.tokenizer.hf.eos_token_id)
        device = groups.initialize(options.parallel)
        watchdog.start()
        return MegatronBackend(options, source, load_model(options, source, device), ends, decoder(tokenizer), watchdog)
    except BaseException as error:
        watchdog.__exit__(type(error), error, error.__traceback__)
        raise


def load_model(options: MegatronOptions, source: ModelSource, device: torch.device) -> CachedModel:
    """The model with its weights, on the grid that is laid."""
    kernel_choice.settle(
        options.parallel.kernel, heads_of(options.parallel, source.hf_config, options.precision, device)
    )
    with torch.no_grad():
        model = build_model(source.hf_config, source.rope, options.parallel, options.precision).to(device)
    source.load(model)
    return CachedModel(model, source.rope, options.prefill_chunk)
