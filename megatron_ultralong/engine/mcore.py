"""Every megatron-core symbol that this project uses, in one place; what differs between its versions is in versions.py.

The supported range is >=0.16.1,<0.20: README.md says what was tested with what.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

import torch

from megatron_ultralong.engine.replacing import replaced

# What megatron-core's own calls of torch.distributed.checkpoint warn of, at every save and load.
warnings.filterwarnings("ignore", category=FutureWarning, message="Please use DTensor instead")
warnings.filterwarnings("ignore", category=FutureWarning, message="`(load|save)_state_dict` is deprecated")
# PyTorch 2.13's new names of all_gather_into_tensor and its like, which older ones do not have.
warnings.filterwarnings("ignore", category=FutureWarning, message=r"`torch\.distributed\.\w+` is deprecated")
warnings.filterwarnings("ignore", category=UserWarning, message="The argument order of load has been changed")
warnings.filterwarnings("ignore", category=UserWarning, message="torch.distributed is disabled, unavailable")
# Of what newer versions import at the first step and no model of ours uses.
warnings.filterwarnings("ignore", category=UserWarning, message=r"\w+ is experimental and still under active")
# From 0.17 on it warns of common.pt, which every version reads, whenever it reads one.
logging.getLogger("megatron.core.dist_checkpointing.strategies.common").setLevel(logging.ERROR)
# And of its own writer in the background, which checkpoint_writer.py asks for on purpose.
logging.getLogger("megatron.core.dist_checkpointing.strategies.torch").addFilter(
    lambda record: "async save is deprecated" not in record.getMessage()
)


@contextlib.contextmanager
def _uncompiled() -> Iterator[None]:
    """Without a GPU, megatron-core's fused functions stay plain Python.

    It hands each of them to torch.compile as it is imported, which alone loads the compiler (1.6 s of a CPU core in
    every process) and at the first call would build C++ for shapes that the next document changes.
    """
    if torch.cuda.is_available():
        yield
        return
    with replaced(torch, "compile", lambda function: function):
        yield


with warnings.catch_warnings(), _uncompiled():  # on import it warns of each optional package that is missing
    warnings.filterwarnings("ignore", category=UserWarning, module=r"megatron\.")
    import megatron.core.dist_checkpointing.utils as dist_utils
    import megatron.core.fusions.fused_bias_swiglu as fused_bias_swiglu
    import megatron.core.optimizer.clip_grads as clip_grads
    import megatron.core.tensor_parallel.layers as tensor_parallel_layers
    import megatron.core.tensor_parallel.random as megatron_random
    import megatron.core.utils as mcore_utils
    from megatron.core import dist_checkpointing, parallel_state
    from megatron.core.dist_checkpointing.mapping import ShardedTensor
    from megatron.core.dist_checkpointing.strategies import filesystem_async
    from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
    from megatron.core.extensions.transformer_engine import TEDotProductAttention
    from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.optimizer import DistributedOptimizer, OptimizerConfig, get_megatron_optimizer
    from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
    from megatron.core.packed_seq_params import PackedSeqParams
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.tensor_parallel.layers import (
        ColumnParallelLinear,
        RowParallelLinear,
        param_is_not_tensor_parallel_duplicate,
    )
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.identity_op import IdentityOp
    from megatron.core.transformer.mlp import MLP, MLPSubmodules
    from megatron.core.transformer.module import Float16Module, param_is_not_shared
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
    from megatron.core.transformer.transformer_config import TransformerConfig
    from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

__all__ = [
    "MLP",
    "AsyncCallsQueue",
    "AttnMaskType",
    "ColumnParallelLinear",
    "DistributedDataParallel",
    "DistributedDataParallelConfig",
    "DistributedOptimizer",
    "Float16Module",
    "GPTModel",
    "IdentityOp",
    "MLPSubmodules",
    "ModuleSpec",
    "OptimizerConfig",
    "OptimizerParamScheduler",
    "PackedSeqParams",
    "RowParallelLinear",
    "SelfAttention",
    "SelfAttentionSubmodules",
    "ShardedTensor",
    "TEDotProductAttention",
    "TransformerBlockSubmodules",
    "TransformerConfig",
    "TransformerLayer",
    "TransformerLayerSubmodules",
    "clip_grad_by_total_norm_fp32",
    "clip_grads",
    "dist_checkpointing",
    "dist_utils",
    "filesystem_async",
    "finalize_model_grads",
    "fused_bias_swiglu",
    "get_bias_dropout_add",
    "get_forward_backward_func",
    "get_gpt_layer_with_transformer_engine_spec",
    "get_megatron_optimizer",
    "get_num_layers_to_build",
    "mcore_utils",
    "megatron_random",
    "model_parallel_cuda_manual_seed",
    "parallel_state",
    "param_is_not_shared",
    "param_is_not_tensor_parallel_duplicate",
    "tensor_parallel_layers",
]
