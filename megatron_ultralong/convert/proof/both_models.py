"""One forward pass of transformers' model, in fp32 and in fp64, and one of megatron-core's, over the same tokens.

The fp64 pass is what both fp32 passes are held against. It casts a layer at a time, so it takes the memory of one
layer more, and the time of three passes in all. Angles stay those of fp32, which both sides form alike.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from megatron_ultralong.checkpoint.description import Description
from megatron_ultralong.checkpoint.loading import load_weights
from megatron_ultralong.config.sections import ParallelConfig
from megatron_ultralong.context_parallel.core_attention import SequenceLayout
from megatron_ultralong.convert.folding import QueryFold
from megatron_ultralong.convert.parameter_mapping import Table
from megatron_ultralong.convert.proof.trace import Traces, follow_megatron, follow_transformers, megatron_module
from megatron_ultralong.errors import UserError
from megatron_ultralong.files import read_json
from megatron_ultralong.model.build import build_model


@dataclasses.dataclass(frozen=True)
class Pass:
    """What a forward pass leaves.

    Attributes:
        hidden: final hidden states, fp32 [S, D].
        head: weights of the output layer, fp32 [V, D].
        exact: the hidden states in fp64 [S, D], of transformers' model alone.
    """

    hidden: torch.Tensor
    head: torch.Tensor
    exact: torch.Tensor | None = None


def transformers(
    folder: Path, dtype: torch.dtype | None, tokens_1S: torch.Tensor, table: Table, traces: Traces
) -> Pass:
    """Run transformers' model in fp32 and in fp64.

    Args:
        folder: in Hugging Face format.
        dtype: what weights are rounded to first; None: as they are stored.
        tokens_1S: int64.
        table: names the modules that are traced.
        traces: takes both passes.

    Raises:
        UserError: transformers can't load the folder.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, dtype=torch.float32, attn_implementation="sdpa"
        )
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{folder}: transformers cannot load it ({reason}); convert or copy it again.") from None
    model = model.to(tokens_1S.device).eval()
    _round(model, dtype)
    length = tokens_1S.shape[1]
    with follow_transformers(model, table, traces.theirs, length):
        hidden = model.base_model(input_ids=tokens_1S, use_cache=False).last_hidden_state[0]
    with follow_transformers(model, table, traces.exact, length), _cast_by_layer(model):
        embedded = model.get_input_embeddings()(tokens_1S).double()
        exact = model.base_model(inputs_embeds=embedded, use_cache=False).last_hidden_state[0]
    return Pass(hidden, model.get_output_embeddings().weight.detach(), exact)


class _cast_by_layer:  # noqa: N801  a context manager
    """Every layer, and the final norm, computes in fp64 while it runs."""

    def __init__(self, model: Any) -> None:
        self.modules = [*model.base_model.layers, model.base_model.norm]

    def __enter__(self) -> None:
        def up(module: torch.nn.Module, *_: Any) -> None:
            module.double()

        def down(module: torch.nn.Module, *_: Any) -> None:
            module.float()  # exactly what it was

        self.handles = [module.register_forward_pre_hook(up) for module in self.modules]
        self.handles += [module.register_forward_hook(down) for module in self.modules]

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


@dataclasses.dataclass(frozen=True)
class Rounding:
    """How the weights of the Hugging Face folder were rounded, for megatron-core's to be rounded alike.

    Attributes:
        folder: the folder, whose config.json names the dtype of its weights.
        dtype: what every weight is rounded to; None: none is.
        fold: what an export's queries were multiplied by before they were rounded.
    """

    folder: Path
    dtype: torch.dtype | None
    fold: QueryFold

    def apply(self, model: torch.nn.Module, table: Table) -> None:
        """Round the weights of a megatron-core model."""
        folded = list(self._folded(model, table)) if self.fold.factor != 1.0 else []
        _round(model, self.dtype)
        for parameter, value in folded:
            parameter.copy_(value)

    def _folded(self, model: torch.nn.Module, table: Table) -> Any:
        """Parameters that hold queries, and their values as they come back from the export's rounding."""
        mend = "convert it again"
        named = read_json(self.folder / "config.json", "the model's configuration", mend).get("torch_dtype")
        dtype = self.dtype or getattr(torch, str(named), torch.float32)
        for rule, layer in table.pieces():
            factors = self.fold.fused(rule, table.dimensions)
            if factors is not None:
                module = megatron_module(model, rule, layer)
                parameter = module.bias if rule.megatron.endswith(".bias") else module.weight
                wide = factors.to(parameter.device).view(-1, *[1] * (parameter.dim() - 1))
                yield parameter, (parameter * wide).to(dtype).float() / wide


def _round(model: torch.nn.Module, dtype: torch.dtype | None) -> None:
    """Round every weight to `dtype`, keeping fp32."""
    for parameter in model.parameters() if dtype is not None else ():
        parameter.copy_(parameter.to(dtype))


def megatron(load: Path, rounding: Rounding, tokens_1S: torch.Tensor, table: Table, traces: Traces) -> Pass:
    """Run megatron-core's model in fp32: arguments as `transformers`.

    Raises:
        UserError: the checkpoint can't be loaded.
    """
    description = Description.read(load)
    model = build_model(description.hf_config, description.rope, ParallelConfig(), "fp32").to(tokens_1S.device).eval()
    load_weights(model, load)
    rounding.apply(model, table)
    model.post_process = False  # GPTModel then returns the (normed) hidden states, not [S, V] logits
    positions_1S = torch.arange(tokens_1S.shape[1], device=tokens_1S.device)[None]
    with follow_megatron(model, table, traces.ours, tokens_1S.shape[1]):
        hidden_S1D = model(
            input_ids=tokens_1S,
            position_ids=positions_1S,
            attention_mask=None,
            packed_seq_params=SequenceLayout(position_ids=positions_1S),
        )
    tied = model.share_embeddings_and_output_weights
    head = model.shared_embedding_or_output_weight() if tied else model.output_layer.weight
    return Pass(hidden_S1D[:, 0], head.detach()[: table.dimensions.V])
