"""Four processes over gloo, started once, that lay one grid after another and ask the megatron backend on it.

A grid of fewer ranks is laid twice over the four: both halves answer alike.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist

from megatron_ultralong.config.sections import ParallelConfig
from megatron_ultralong.context_parallel import zigzag
from megatron_ultralong.context_parallel.core_attention import SequenceLayout
from megatron_ultralong.engine import cpu, groups, mcore
from megatron_ultralong.evaluation.backends.interface import Forced, Prompt
from megatron_ultralong.evaluation.backends.megatron.megatron_backend import (
    MegatronBackend,
    MegatronOptions,
    load_model,
)
from megatron_ultralong.evaluation.backends.megatron.model_source import open_source

RANKS = 4
Layout = tuple[int, int, int]
"""tensor, context, ulysses."""
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.evaluation.backends.model_ranks"])


class ModelRanks:
    """The processes; use as a context manager."""

    def __enter__(self) -> ModelRanks:
        self.folder = tempfile.TemporaryDirectory()
        pipes = [_CONTEXT.Pipe() for _ in range(RANKS)]
        self.pipes = [here for here, _ in pipes]
        self.processes = [
            _CONTEXT.Process(target=_serve, args=(rank, Path(self.folder.name) / "store", there), daemon=True)
            for rank, (_, there) in enumerate(pipes)
        ]
        for process in self.processes:
            process.start()
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self.pipes:
            with contextlib.suppress(OSError):
                pipe.send(None)
        for process in self.processes:
            process.join(10)
            process.kill()
        self.folder.cleanup()

    def run(self, layout: Layout, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `function(*arguments)` returns on each rank of the grid."""
        for pipe in self.pipes:
            pipe.send((layout, function, arguments))
        results: dict[Any, Any] = {}
        while len(results) < RANKS:
            ready = multiprocessing.connection.wait([pipe for pipe in self.pipes if pipe not in results], timeout=60)
            if not ready:
                raise TimeoutError(f"{RANKS - len(results)} ranks do not answer")
            results |= {pipe: pipe.recv() for pipe in ready}
            for result in results.values():
                if isinstance(result, Exception):
                    raise result  # the others wait for this rank
        return [results[pipe] for pipe in self.pipes]


def backend(
    load: Path, layout: Layout, chunk: int, precision: Literal["fp32", "bf16"] = "fp32", past_context: bool = False
) -> MegatronBackend:
    """A backend on the grid that is laid, without a tokenizer: its texts are the ids."""
    parallel = ParallelConfig(device="cpu", tensor=layout[0], context=layout[1], ulysses=layout[2])
    made = MegatronOptions(
        load=load, precision=precision, parallel=parallel, prefill_chunk=chunk, past_context=past_context
    )
    source = open_source(load)
    model = load_model(made, source, torch.device("cpu"))
    return MegatronBackend(made, source, model, frozenset(), lambda ids: " ".join(map(str, ids)))


Asked = tuple[list[list[int]], int, list[tuple[list[int], tuple[tuple[int, int], ...]]]]
"""Prompts, the budget of each, and texts to judge with their answers."""


def ask(load: Path, layout: Layout, chunks: Sequence[int], asked: Asked, group: str = "") -> list[Any]:
    """For each chunk: generated ids of each prompt, verdicts, and losses of the last text."""
    prompts, budget, texts = asked
    found = []
    for chunk in chunks:
        model = backend(load, layout, chunk)
        said = dict(model.generate([Prompt("", ids, budget, group=group) for ids in prompts]))
        judged = dict(model.judge([Forced(ids, answers, group) for ids, answers in texts]))
        losses = model.losses(np.array(texts[-1][0], dtype=np.int32)) if texts else None
        found.append(([said[i].ids for i in range(len(prompts))], [judged[i] for i in range(len(texts))], losses))
    return found


def bf16_losses(load: Path, layout: Layout, ids: list[int]) -> np.ndarray:
    """Losses in bf16, read in three chunks or more."""
    return backend(load, layout, 20, "bf16").losses(ids)


def hidden_states(load: Path, layout: Layout, ids: list[int], pieces: list[int]) -> tuple[Any, ...]:
    """In fp64: final hidden states by the cache, read in `pieces`, and by training's forward pass, each with places."""
    model = backend(load, layout, 1 << 20).model
    model.model.double()
    model.make_room(len(ids))
    model.ids = np.array(ids)
    places, rows, start = [], [], 0
    with torch.inference_mode():
        for piece in pieces:
            hidden_LD, own = model.forward(model.ids[start : start + piece])
            places.append(own)
            rows.append(hidden_LD[: len(own)])
            start += piece
        held = zigzag.spans(len(ids), mcore.parallel_state.get_context_parallel_rank(), layout[1])
        at = np.concatenate([np.arange(first, last) for first, last in held])
        positions_1L = torch.from_numpy(at)[None]
        whole_L1D = model.model(
            input_ids=torch.from_numpy(model.ids[at])[None],
            position_ids=positions_1L,
            attention_mask=None,
            packed_seq_params=SequenceLayout(position_ids=positions_1L),
        )
    return np.concatenate(places), torch.cat(rows).numpy(), at, whole_L1D[:, 0].numpy()


def _serve(rank: int, store: Path, pipe: Any) -> None:
    torch.set_num_threads(1)
    cpu.activate()
    laid, grids = None, 0
    while (asked := pipe.recv()) is not None:
        layout, function, arguments = asked
        try:
            if layout != laid:
                groups.finalize()  # a grid's threads wake a hundred times a second as long as it stands
                grids += 1
                _lay(layout, rank, store.with_name(f"{store.name}{grids}"))
                laid = layout
            pipe.send(function(*arguments))
        except Exception as error:
            pipe.send(error)
    groups.finalize()


def _lay(layout: Layout, rank: int, store: Path) -> None:
    """Join the processes and lay megatron-core's grid over them."""
    dist.init_process_group("gloo", store=dist.FileStore(str(store), RANKS), rank=rank, world_size=RANKS)
    parallel = ParallelConfig(tensor=layout[0], context=layout[1], ulysses=layout[2])
    mcore.parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor,
        context_parallel_size=parallel.context,
        hierarchical_context_parallel_sizes=groups.hierarchy(parallel),
    )
    mcore.model_parallel_cuda_manual_seed(1)
