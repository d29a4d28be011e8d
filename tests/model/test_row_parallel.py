"""Products that share megatron-core's gather buffer: its own bytes, also where checkpoints gather in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from megatron_ultralong.config.sections import ParallelConfig
from megatron_ultralong.context_parallel.core_attention import SequenceLayout
from megatron_ultralong.engine import device, fused, mcore
from megatron_ultralong.model import build
from megatron_ultralong.model.row_parallel import RowParallelLinear
from megatron_ultralong.rope.scaling import RopeScaling
from tests.model.test_memory_options import LENGTH, LLAMA
from tests.ranks import leave

OPTIONS: list[dict[str, Any]] = [
    {},
    {"recompute": "selective"},
    {"recompute": "selective", "mlp_chunk": 5},
    {"recompute": "full", "mlp_chunk": 7},
]


def gradients(linear: Any, into_buffer: bool, precision: Any, **options: Any) -> dict[str, Tensor]:
    """Loss and gradients of a model whose row-parallel layers are of this class."""
    parallel = ParallelConfig(device="cpu", tensor=2, sequence_parallel=True, **options)
    torch.manual_seed(3)
    before, build.RowParallelLinear = build.RowParallelLinear, linear  # type: ignore[misc]
    try:
        fusions = build.Fusions(gradient_accumulation=into_buffer)
        rope = RopeScaling(base=1e4, original_length=64)
        model: Any = build.build_model(LLAMA, rope, parallel, precision, fusions=fusions)
    finally:
        build.RowParallelLinear = before  # type: ignore[misc]
    generator = torch.Generator().manual_seed(4 + dist.get_rank())
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
        if into_buffer:  # as DDP
            parameter.main_grad, parameter.grad_added_to_main_grad = torch.zeros(parameter.shape), False
    positions, tokens = torch.arange(LENGTH)[None], torch.arange(LENGTH)[None] % 64
    layout = SequenceLayout(position_ids=positions, documents=None)
    loss = model(tokens, positions, None, labels=tokens, loss_mask=torch.ones(1, LENGTH), packed_seq_params=layout)
    loss.backward()
    found = {"loss": loss.detach()}
    for name, parameter in model.named_parameters():
        added = into_buffer and parameter.grad_added_to_main_grad
        found[name] = parameter.main_grad if added else parameter.grad
    return found


def compare(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    device.use("cpu")
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    mcore.parallel_state.initialize_model_parallel(tensor_model_parallel_size=2)
    mcore.model_parallel_cuda_manual_seed(1)
    assert fused.gradient_accumulation(torch.device("cpu"), torch.float32, torch.bfloat16)
    for options, into_buffer, precision in [*((each, False, "fp32") for each in OPTIONS), ({}, True, "bf16")]:
        wanted = gradients(mcore.RowParallelLinear, into_buffer, precision, **options)
        found = gradients(RowParallelLinear, into_buffer, precision, **options)
        assert found["loss"].isfinite() and found["decoder.layers.0.mlp.linear_fc2.weight"].abs().sum() > 0
        for name, tensor in wanted.items():
            assert torch.equal(found[name], tensor), (options, name)
    mcore.parallel_state.destroy_model_parallel()
    leave()


@pytest.mark.gloo
def test_the_shared_buffer_changes_no_byte(tmp_path: Path) -> None:
    mp.spawn(compare, (str(tmp_path / "store"),), nprocs=2)
