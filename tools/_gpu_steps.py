"""Training on one device: head and loss, a layer, a whole step with its memory by part, the longest sequence.

Llama's shapes with few layers, since one device holds no more: what a layer costs does not depend on their number. All
of a step is the real one (`training.step.train_step`), over tokens drawn from a seed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import _gpu_run
import torch
from _gpu_timing import OUT_OF_MEMORY, Clock, Row, attempt, free, said, sweep, timed
from torch import Tensor

from megatron_ultralong.context_parallel.core_attention import SequenceLayout
from megatron_ultralong.engine import device as engine_device
from megatron_ultralong.engine import mcore
from megatron_ultralong.model.loss import LossOptions, sum_of_losses
from megatron_ultralong.planning.flops import ModelShape, causal_pairs, peak_flops, step_flops
from megatron_ultralong.planning.memory import StepMemory, loss_memory, predict
from megatron_ultralong.training.measured_memory import measured
from megatron_ultralong.training.setup import Run
from megatron_ultralong.training.step import train_step

logger = logging.getLogger(__name__)

MEMORY_OPTIONS: dict[str, dict[str, Any]] = {
    "nothing recomputed": {},
    "selective": {"recompute": "selective"},
    "selective, MLP in chunks": {"recompute": "selective", "mlp_chunk": 16384},
    "full, MLP in chunks": {"recompute": "full", "mlp_chunk": 16384},
    "full, MLP in chunks, inputs on the host": {"recompute": "full", "mlp_chunk": 16384, "offload": True},
}
"""Fields of [parallel], by what they keep: the fastest first."""
_NOT_FAR = 1.2


@dataclasses.dataclass(frozen=True)
class Place:
    """Where all is measured.

    Attributes:
        device: of this process.
        memory: its bytes; 0: not known.
        model: config.json; its number of layers does not count.
        matmul: operations a second that a large product reached in this run.
    """

    device: torch.device
    memory: int
    model: dict[str, Any]
    matmul: float

    def with_layers(self, layers: int) -> dict[str, Any]:
        """The config.json with so many."""
        return {**self.model, "num_hidden_layers": layers}


def loss(place: Place, positions: tuple[int, ...], clock: Clock) -> list[Row]:
    """Head and loss in chunks, forward and backward, against the ceiling, and their memory against the formula."""
    rows = [{"positions": count} for count in positions]
    return sweep(rows, "positions", functools.partial(_loss, place), clock, power=1)


def _loss(place: Place, row: Row, limit: float) -> None:
    count, width, vocabulary = row["positions"], place.model["hidden_size"], place.model["vocab_size"]
    hidden = torch.randn(count, 1, width, device=place.device, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(vocabulary, width, device=place.device, dtype=torch.bfloat16).mul_(width**-0.5)
    weight.requires_grad_()
    labels, mask = torch.randint(vocabulary, (1, count), device=place.device), torch.ones(1, count)
    group = mcore.parallel_state.get_tensor_model_parallel_group()
    chunk = max(1, 2**28 // vocabulary)

    def once() -> Tensor:
        hidden.grad = weight.grad = None
        total = sum_of_losses(hidden, weight, labels, mask, group, options=LossOptions(chunk=chunk))
        total.backward()
        return total

    row["seconds"] = timed(once, place.device, limit).seconds
    row["flops"] = 6 * count * width * vocabulary / row["seconds"]
    row["of_matmul"] = row["flops"] / place.matmul
    if place.device.type == "cuda":
        hidden.grad = weight.grad = None
        before = torch.cuda.memory_allocated(place.device)
        torch.cuda.reset_peak_memory_stats(place.device)
        once()
        row["bytes"] = torch.cuda.max_memory_allocated(place.device) - before
        row["bytes_planned"] = loss_memory(chunk, count, width, vocabulary, 2)


def layers(place: Place, lengths: tuple[int, ...], clock: Clock) -> list[Row]:
    """One layer, forward and backward, keeping everything."""
    rows = [{"tokens": length} for length in lengths]
    with _run(place, lengths[0], place.with_layers(1), {}) as run:
        return sweep(rows, "tokens", functools.partial(_layer, place, run), clock)


def _layer(place: Place, run: Run, row: Row, limit: float) -> None:
    length, model = row["tokens"], run.weights
    layer: Any = model.decoder.layers[0]  # type: ignore[union-attr,index]
    shape = dataclasses.replace(ModelShape.from_hf(place.model), layers=1)
    positions = torch.arange(length)[None]
    layout = SequenceLayout(position_ids=positions, documents=None)
    table = model.rotary_pos_emb(positions)  # type: ignore[operator]
    hidden = torch.randn(length, 1, shape.hidden, device=place.device, dtype=torch.bfloat16, requires_grad=True)
    grad = torch.randn_like(hidden)

    def once() -> None:
        hidden.grad = None
        with run.model.no_sync():  # type: ignore[operator]
            out, _ = layer(hidden, attention_mask=None, rotary_pos_emb=table, packed_seq_params=layout)
            out.backward(grad)

    row["seconds"] = timed(once, place.device, limit).seconds
    row["flops"] = step_flops(shape, length, 0, causal_pairs([length])) / row["seconds"]
    row["of_matmul"] = row["flops"] / place.matmul


@contextlib.contextmanager
def _run(place: Place, length: int, model: dict[str, Any], options: dict[str, Any], document: int = 0) -> Iterator[Run]:
    """A run; what earlier ones held is given back before."""
    free()
    kind: Any = "gpu" if place.device.type == "cuda" else "cpu"
    run = _gpu_run.make(
        _gpu_run.configuration(length, document=document, device=kind, **options), model, document=document
    )
    try:
        train_step(_gpu_run.of_length(run, min(length, 64), document), 0)  # Adam's state is there
        yield run
    finally:
        run.ahead.wait()


def steps(place: Place, cases: tuple[tuple[int, int, tuple[int, ...]], ...], clock: Clock) -> list[Row]:
    """Whole steps under the first memory option that has room.

    Args:
        place: where.
        cases: layers, tensor-parallel ranks of whose shapes the model has one's, and lengths.
        clock: of all.
    """
    found: list[Row] = []
    for number, (layers, ranks, lengths) in enumerate(cases):
        rows = [{"layers": layers, "tensor": ranks, "tokens": length} for length in lengths]
        share = Clock(clock.left / (len(cases) - number))
        found += sweep(rows, "tokens", functools.partial(_step_with_room, place), share)
    return found


def candidates(place: Place, model: dict[str, Any], length: int) -> list[str]:
    """The memory options worth trying, the fastest first: those whose planned total is not far over the memory.

    No GPU has confirmed the plan yet, so some that it finds too large are tried. The last option is always among them.
    """
    gpu, found = place.device.type == "cuda", []
    for name, options in MEMORY_OPTIONS.items():
        planned = predict(_gpu_run.configuration(length, **options), model, 1, 0, gpu)
        if not place.memory or planned.total <= _NOT_FAR * place.memory:
            found.append(name)
    return found or list(MEMORY_OPTIONS)[-1:]


def _step_with_room(place: Place, row: Row, limit: float) -> None:
    model = {**one_of(place.model, row["tensor"]), "num_hidden_layers": row["layers"]}
    for option in candidates(place, model, row["tokens"]):
        found: Row = {"memory": option}
        if attempt(found, functools.partial(_step, place, model, row["tokens"], found, limit)):
            row |= found
            return
        row["without_room"] = [*row.get("without_room", []), option]
    row["left_out"] = OUT_OF_MEMORY


def one_of(model: dict[str, Any], ranks: int) -> dict[str, Any]:
    """The shapes that one of so many tensor-parallel ranks has, as a config.json: hidden states are whole."""
    split = {key: model[key] // ranks for key in ("num_attention_heads", "num_key_value_heads", "intermediate_size")}
    head_dim = model["hidden_size"] // model["num_attention_heads"]
    return {**model, **split, "vocab_size": model["vocab_size"] // ranks, "head_dim": head_dim}


def _step(place: Place, model: dict[str, Any], length: int, row: Row, limit: float) -> None:
    with _run(place, length, model, MEMORY_OPTIONS[row["memory"]]) as run:
        with measured(run) as memory:
            row["seconds"], result = _seconds(run, 1)
        if row["seconds"] < limit / 2:  # measuring slows a CPU, and at a new length kernels are chosen
            row["seconds"], result = _seconds(run, 2)
        planned = predict(run.config, model, 1, 0, place.device.type == "cuda")
    flops = step_flops(ModelShape.from_hf(model), length, result.labels, result.pairs)
    row["loss"] = result.loss
    row["tokens_per_second"] = length / row["seconds"]
    row["flops"] = flops / row["seconds"]
    row["of_matmul"] = row["flops"] / place.matmul
    peak = peak_flops(engine_device.name(place.device))
    row["mfu"] = None if peak is None else row["flops"] / peak
    row["bytes"], row["bytes_planned"] = _by_part(memory), _by_part(planned)


def _by_part(memory: StepMemory) -> dict[str, int]:
    return {name: getattr(memory, name) for name in (*(f.name for f in dataclasses.fields(StepMemory)), "total")}


def _seconds(run: Run, step: int) -> tuple[float, Any]:
    begun = time.perf_counter()
    result = train_step(run, step)
    if run.device.type == "cuda":
        torch.cuda.synchronize(run.device)
    return time.perf_counter() - begun, result


def longest(place: Place, layers: int, start: int, most: int, document: int, clock: Clock) -> list[Row]:
    """The most tokens of a step under each memory option, by doubling and then halving the gap to an eighth.

    Documents are short, so that time does not bound the length: memory is the same but for their bounds.
    """
    found = []
    for number, (name, options) in enumerate(MEMORY_OPTIONS.items()):
        share = Clock(clock.left / (len(MEMORY_OPTIONS) - number))
        row: Row = {"memory": name, "layers": layers, "document": document}
        fits = functools.partial(_fits, place, place.with_layers(layers), options, document)
        row["tokens"], row["bound"] = longest_of(fits, start, most, share)
        logger.info("  %s", said(row))
        found.append(row)
    return found


def longest_of(fits: Callable[[int], bool], start: int, most: int, clock: Clock) -> tuple[int, str]:
    """The largest length found to fit, a multiple of an eighth of `start`, and what bounds it.

    Args:
        fits: whether a length does; shorter ones than one that fits do.
        start: the first length tried.
        most: none is tried beyond.
        clock: no new length is begun when its time is over.
    """
    best, failed, length = 0, 0, start
    while clock.left > 0 and length <= most and not failed:
        best, failed = (length, 0) if fits(length) else (best, length)
        length *= 2
    while failed and clock.left > 0 and failed - best > max(best, start) // 8:
        middle = (best + failed) // 2
        best, failed = (middle, failed) if fits(middle) else (best, middle)
    if failed:
        exact = failed - best <= max(best, start) // 8
        return best, f"{failed:,} is out of memory" + ("" if exact else "; time was over")
    return best, "time was over" if length <= most else f"none beyond {most:,} is tried"


def _fits(place: Place, model: dict[str, Any], options: dict[str, Any], document: int, length: int) -> bool:
    def step() -> None:
        with _run(place, length, model, options, document) as run:
            _seconds(run, 1)

    return attempt({}, step)
