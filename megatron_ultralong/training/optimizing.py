"""What moves the weights: megatron-core's DDP around the model, its optimizer and schedule, and what they fuse."""

from __future__ import annotations

import functools
from typing import Any

import torch

from megatron_ultralong.config.sections import ParallelConfig, RunConfig
from megatron_ultralong.engine import device as engine_device
from megatron_ultralong.engine import fused, host_adam, label_count, mcore
from megatron_ultralong.model import build


def fusions(config: RunConfig, device: torch.device) -> build.Fusions:
    """What is asked for and can be had here; SwiGLU's is for GPUs, where it is compiled."""
    half = config.train.precision == "bf16"
    dtype = torch.bfloat16 if half else torch.float32
    # What torch.utils.checkpoint computes again it computes from copies of the weights, which are not known to DDP.
    parallel = config.parallel
    narrow = half and not config.train.grad_reduce_in_fp32 and not parallel.head_groups  # lean layers' sums are fp32
    into = torch.bfloat16 if narrow else torch.float32
    copies = parallel.mlp_chunk or (parallel.recompute, parallel.attention) == ("selective", "torch")
    copies = copies and not parallel.head_groups
    wanted = config.train.gradient_accumulation_fusion and not copies
    return build.Fusions(
        gradient_accumulation=wanted and fused.gradient_accumulation(device, into, dtype),
        swiglu=config.train.swiglu_fusion and engine_device.gpu_capability(device) is not None,
    )


def optimize(weights: torch.nn.Module, config: RunConfig) -> tuple[torch.nn.Module, Any]:
    """megatron-core's DDP around the model, and its Adam; of that a share on the host, if one is asked for."""
    transformer_config: Any = weights.config
    parallel = config.parallel
    fused.gradient_norms()
    model = mcore.DistributedDataParallel(
        config=transformer_config,
        ddp_config=mcore.DistributedDataParallelConfig(
            grad_reduce_in_fp32=config.train.grad_reduce_in_fp32,
            use_distributed_optimizer=parallel.distributed_optimizer,
            overlap_grad_reduce=parallel.overlap_grad_reduce,
            overlap_param_gather=gathers_late(parallel),
            bucket_size=parallel.ddp_bucket_size or None,
        ),
        module=mcore.Float16Module(transformer_config, weights) if config.train.precision == "bf16" else weights,
    )
    make = functools.partial(mcore.get_megatron_optimizer, optimizer_config(config), [model])
    share = config.optimizer.offload_fraction
    optimizer = host_adam.split(make, share) if share else make()
    if config.optimizer.fused:
        fused.adam(optimizer)
    transformer_config.finalize_model_grads_func = label_count.finalize_model_grads
    transformer_config.grad_scale_func = optimizer.scale_loss
    transformer_config.no_sync_func = model.no_sync
    return model, optimizer


def gathers_late(parallel: ParallelConfig) -> bool:
    """Whether updated weights are gathered as the next forward needs them; megatron-core does it with both overlaps."""
    return parallel.overlap_param_gather and parallel.overlap_grad_reduce and parallel.distributed_optimizer


def optimizer_config(config: RunConfig) -> mcore.OptimizerConfig:
    """megatron-core's."""
    section, half = config.optimizer, config.train.precision == "bf16"
    return mcore.OptimizerConfig(
        optimizer="adam",
        lr=section.learning_rate,
        min_lr=section.min_learning_rate,
        weight_decay=section.weight_decay,
        adam_beta1=section.beta1,
        adam_beta2=section.beta2,
        adam_eps=section.eps,
        clip_grad=section.clip_grad,
        bf16=half,
        params_dtype=torch.bfloat16 if half else torch.float32,
        use_distributed_optimizer=config.parallel.distributed_optimizer,
        overlap_param_gather=gathers_late(config.parallel),
    )


def schedule(optimizer: Any, config: RunConfig) -> Any:
    """megatron-core's OptimizerParamScheduler."""
    section = config.optimizer
    return mcore.OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=section.learning_rate,
        min_lr=section.min_learning_rate,
        lr_warmup_steps=section.warmup_steps,
        lr_decay_steps=max(config.train.steps, section.warmup_steps + 1),
        lr_decay_style=section.decay,
        start_wd=section.weight_decay,
        end_wd=section.weight_decay,
        wd_incr_steps=config.train.steps,
        wd_incr_style="constant",
        # The configuration wins on resume: a run may be given more steps or another rate.
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,
    )
