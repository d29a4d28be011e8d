"""What of a run needs a GPU is at least told to megatron-core in its own terms."""

from __future__ import annotations

from pathlib import Path

import torch

from megatron_ultralong.config import (
    DataConfig,
    DataSource,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
)
from megatron_ultralong.training.setup import optimizer_config


def test_offload_in_the_terms_of_megatron_core() -> None:
    config = RunConfig(
        model=ModelConfig(hf=Path("hf")),
        data=DataConfig(sources=(DataSource(index=Path("packed")),), sequence_length=64),
        train=TrainConfig(steps=1, global_batch_size=1),
        parallel=ParallelConfig(distributed_optimizer=True),
        optimizer=OptimizerConfig(offload_fraction=0.5),
    )
    told = optimizer_config(config)
    assert told.optimizer_cpu_offload and told.optimizer_offload_fraction == 0.5
    # Where its gradients lie then, and so what train_step clips.
    assert told.use_precision_aware_optimizer_no_fp8_or_ds_fp8
    assert {told.main_params_dtype, told.main_grads_dtype, told.exp_avg_dtype} == {torch.float32}
