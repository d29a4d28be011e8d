"""A model of lean layers beside its twin of megatron-core's, on one process or on the ranks of a grid."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megatron_ultralong.config.sections import ParallelConfig
from megatron_ultralong.context_parallel import zigzag
from megatron_ultralong.context_parallel.core_attention import SequenceLayout
from megatron_ultralong.engine import mcore
from megatron_ultralong.model.build import NO_FUSIONS, Fusions, build_model
from megatron_ultralong.model.loss_options import LossOptions
from megatron_ultralong.model.norms import LateNorm
from megatron_ultralong.rope.scaling import RopeScaling

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 64,
    "max_position_embeddings": 64,
}
QWEN2 = {**LLAMA, "architectures": ["Qwen2ForCausalLM"]}
QWEN3 = {**LLAMA, "architectures": ["Qwen3ForCausalLM"], "head_dim": 8}
FAMILIES = {"llama": LLAMA, "qwen2": QWEN2, "qwen3": QWEN3}
LENGTH, DOCUMENTS = 80, (0, 33, 36, 71, 80)
EXACT = {torch.float64: 1e-13, torch.float32: 3e-6}
"""Largest part by which a gradient may differ: some hundred sums of the dtype's rounding, 1.1e-16 and 6e-8."""

Found = dict[str, Tensor]


def model_of(
    family: str, precision: Any = "fp32", fusions: Fusions = NO_FUSIONS, loss_chunk: int = 0, **options: Any
) -> Any:
    """A model with weights that depend on nothing but their names' order and the tensor-parallel rank."""
    rope, parallel = RopeScaling(base=1e4, original_length=64), ParallelConfig(device="cpu", **options)
    model: Any = build_model(
        FAMILIES[family], rope, parallel, precision, loss=LossOptions(chunk=loss_chunk), fusions=fusions
    )
    rank = mcore.parallel_state.get_tensor_model_parallel_rank()
    for number, parameter in enumerate(model.parameters()):
        split = getattr(parameter, "tensor_model_parallel", False)
        generator = torch.Generator().manual_seed(100 * number + (rank if split else 0))
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
    return model


def layout_of(documents: bool) -> SequenceLayout:
    """Of this rank's share of `LENGTH` positions."""
    size = mcore.parallel_state.get_context_parallel_world_size()
    positions = zigzag.shard(torch.arange(LENGTH)[None], mcore.parallel_state.get_context_parallel_rank(), size)
    return SequenceLayout(position_ids=positions, documents=DOCUMENTS if documents else None)


def whole(model: Any, documents: bool = False) -> Found:
    """Loss and gradients of a training step's forward and backward; labels are missing here and there."""
    layout = layout_of(documents)
    tokens = layout.position_ids.mul(7).remainder(64)
    mask = layout.position_ids.remainder(3).ne(0).float()
    loss = model(tokens, layout.position_ids, None, labels=tokens, loss_mask=mask, packed_seq_params=layout)
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}


def block(model: Any, documents: bool = False) -> Found:
    """Output and gradients of the layers and the last norm in fp64, without the loss, which works in fp32."""
    layout, model = layout_of(documents), model.double()
    generator = torch.Generator().manual_seed(9)
    length = layout.position_ids.shape[1]
    if model.config.sequence_parallel:
        length //= mcore.parallel_state.get_tensor_model_parallel_world_size()
    x, grad = (torch.randn(length, 1, 32, generator=generator, dtype=torch.float64) for _ in range(2))
    x.requires_grad_()
    decoder = model.decoder
    out = decoder(x, None, rotary_pos_emb=model.rotary_pos_emb(layout.position_ids), packed_seq_params=layout)
    if isinstance(decoder.final_layernorm, LateNorm):
        out = decoder.final_layernorm.norm(out)
    out.backward(grad)
    assert x.grad is not None
    gradients = {name: p.grad for name, p in decoder.named_parameters()}
    return {"output": out.detach(), "input": x.grad, **gradients}


def apart(found: Found, wanted: Found) -> float:
    """The largest difference of two of a name, relative to its size."""
    assert found.keys() == wanted.keys() and len(found) > 10
    differences = {}
    for name, right in wanted.items():
        assert found[name] is not None and found[name].shape == right.shape and found[name].dtype == right.dtype, name
        assert right.norm() > 0, name
        differences[name] = float((found[name].double() - right.double()).norm() / right.double().norm())
    return max(differences.values())
