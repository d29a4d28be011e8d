"""A training run without files: the real model, optimizer and step, over tokens drawn from a seed.

What `training.setup.prepare` builds from a configuration's folders is built here from sizes alone, so that a step can
be measured and tested where there is neither a tokenizer nor a corpus. Needs the process grid (engine.groups).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from megatron_ultralong import provenance
from megatron_ultralong.checkpoint.description import Description
from megatron_ultralong.config.sections import DataConfig, ModelConfig, ParallelConfig, RunConfig, TrainConfig
from megatron_ultralong.data.reading.dataset import Sample
from megatron_ultralong.engine import device as engine_device
from megatron_ultralong.model import build
from megatron_ultralong.model.loss import LossOptions
from megatron_ultralong.rope import config_json
from megatron_ultralong.training import optimizing
from megatron_ultralong.training.setup import Run

LLAMA_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
}


class DrawnSamples:
    """In the place of a BlendedDataset: tokens drawn anew for each sample, documents of one length.

    Args:
        length: tokens a sample.
        document: tokens a document; 0: one document.
        vocabulary: ids drawn from.
    """

    first = 0

    def __init__(self, length: int, document: int, vocabulary: int) -> None:
        self.length, self.document, self.vocabulary = length, document or length, vocabulary
        self.bounds = np.array([*range(0, length, self.document), length], dtype=np.int32)

    def read(self, sample: int, spans: Any) -> Sample:
        """As PackedDataset's: tokens, labels, loss mask, positions and bounds at the spans."""
        drawn = np.random.default_rng((7, sample)).integers(self.vocabulary, size=self.length + 1)
        held = np.concatenate([np.arange(*span) for span in spans])
        mask = np.ones(len(held), np.float32)
        return Sample(drawn[held], drawn[held + 1], mask, held % self.document, self.bounds)


def configuration(
    length: int,
    *,
    document: int = 0,
    precision: Literal["fp32", "bf16"] = "bf16",
    steps: int = 100,
    **parallel: Any,
) -> RunConfig:
    """A run of one sample a step, `parallel` being fields of its section."""
    return RunConfig(
        model=ModelConfig(hf=Path("model"), init="random"),
        data=DataConfig(sequence_length=length, sources=(), document_mask=document > 0),
        parallel=ParallelConfig(**parallel),
        train=TrainConfig(steps=steps, global_batch_size=1, precision=precision),
    )


def make(
    config: RunConfig,
    hf_config: dict[str, Any],
    *,
    document: int = 0,
    fill: Callable[[torch.nn.Module], None] = lambda model: None,
) -> Run:
    """The run, at step 0.

    Args:
        config: see `configuration`.
        hf_config: the model's config.json.
        document: tokens a document, where documents are masked.
        fill: sets the weights, if not the random ones are wanted.
    """
    device = engine_device.current()
    rope = config_json.read(hf_config)
    weights = build.build_model(
        hf_config,
        rope,
        config.parallel,
        config.train.precision,
        config.rope.angles,
        LossOptions(config.train.loss_chunk, config.train.z_loss),
        optimizing.fusions(config, device),
    ).to(device)
    fill(weights)
    model, optimizer = optimizing.optimize(weights, config)
    scheduler = optimizing.schedule(optimizer, config)
    description = Description(hf_config, rope, "", 0, provenance.resolved(config, processes=1))
    data: Any = DrawnSamples(config.padded_length, document, hf_config["vocab_size"])
    return Run(config, model, weights, optimizer, scheduler, data, description, 0, 0, None, device)


def of_length(run: Run, length: int, document: int = 0) -> Run:
    """The same model and optimizer over samples of another length."""
    run.ahead.wait()
    data = dataclasses.replace(run.config.data, sequence_length=length, document_mask=document > 0)
    samples: Any = DrawnSamples(length, document, run.description.hf_config["vocab_size"])
    return dataclasses.replace(
        run, config=dataclasses.replace(run.config, data=data), data=samples, ahead=type(run.ahead)()
    )
