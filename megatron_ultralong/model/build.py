"""megatron-core's GPTModel from a Hugging Face config.json.

The architecture is read from the config.json and nowhere else; parallelism and precision come from the run.
The layer is megatron-core's TransformerLayer with three modules of our own: a norm that allows sequence
parallelism without Transformer Engine, self-attention that rotates by one table of cos and sin for all layers, and
ring attention as the core attention.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor

from megatron_ultralong.config.sections import ParallelConfig
from megatron_ultralong.context_parallel.activation_recomputation import checkpoint_all_but_attention
from megatron_ultralong.context_parallel.core_attention import RingCoreAttention, TECoreAttention
from megatron_ultralong.engine import device as engine_device
from megatron_ultralong.engine import groups, mcore, transformer_engine
from megatron_ultralong.errors import UserError
from megatron_ultralong.families.defaults import completed
from megatron_ultralong.families.tables import rules_of
from megatron_ultralong.model.lean.lean_layer import LeanLayer, LeanOptions, make_lean
from megatron_ultralong.model.likelihoods import judged
from megatron_ultralong.model.loss import sum_of_losses
from megatron_ultralong.model.loss_options import DEFAULT, LossOptions
from megatron_ultralong.model.norms import LateNorm, RMSNorm
from megatron_ultralong.model.offload import saved_on_host
from megatron_ultralong.model.rotary import Angles, Rotary, RotarySelfAttention
from megatron_ultralong.model.row_parallel import RowParallelLinear
from megatron_ultralong.model.tiling import tile
from megatron_ultralong.rope.config_json import head_dim
from megatron_ultralong.rope.scaling import RopeScaling

SAVED_NAMES = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}
"""This project's layers' names -> those under which a Transformer Engine layer saves the same weights."""


@dataclasses.dataclass(frozen=True)
class Fusions:
    """Which operators of a layer are one.

    Attributes:
        gradient_accumulation: weights' gradients and their addition to DDP's buffer, which must be there.
        swiglu: megatron-core's.
    """

    gradient_accumulation: bool = False
    swiglu: bool = False


NO_FUSIONS = Fusions()


class SelectiveLayer(mcore.TransformerLayer):
    """A layer of which backward computes all again but the attention over the sequence."""

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        """As of mcore.TransformerLayer."""
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(*arguments, **keywords)
        return checkpoint_all_but_attention(super().forward, *arguments, **keywords)


def transformer_config(
    hf_config: dict[str, Any],
    parallel: ParallelConfig,
    precision: Literal["fp32", "bf16"],
    fusions: Fusions = NO_FUSIONS,
) -> mcore.TransformerConfig:
    """megatron-core's configuration of the model in `hf_config` under `parallel`.

    Raises:
        UserError: an architecture, activation or window that this project does not compute.
    """
    keys, hf_config = {rule.megatron for rule in rules_of(hf_config)}, completed(hf_config)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    heads = hf_config["num_attention_heads"]
    return mcore.TransformerConfig(
        num_layers=hf_config["num_hidden_layers"],
        hidden_size=hf_config["hidden_size"],
        ffn_hidden_size=hf_config["intermediate_size"],
        num_attention_heads=heads,
        num_query_groups=hf_config.get("num_key_value_heads") or heads,
        kv_channels=head_dim(hf_config),
        layernorm_epsilon=hf_config["rms_norm_eps"],
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        add_qkv_bias=any(key.endswith("linear_qkv.bias") for key in keys),
        qk_layernorm=any(key.endswith("q_layernorm.weight") for key in keys),
        init_method_std=hf_config.get("initializer_range", 0.02),
        hidden_dropout=0.0,
        attention_dropout=0.0,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=precision == "bf16",
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        num_layers_in_first_pipeline_stage=parallel.first_stage_layers or None,
        num_layers_in_last_pipeline_stage=parallel.last_stage_layers or None,
        context_parallel_size=parallel.context,
        cp_comm_type=parallel.cp_comm_type,
        hierarchical_context_parallel_sizes=groups.hierarchy(parallel),
        sequence_parallel=parallel.sequence_parallel,
        calculate_per_token_loss=True,
        **_recompute(parallel),
        deallocate_pipeline_outputs=engine_device.gpu_capability(engine_device.current()) is not None,
        gradient_accumulation_fusion=fusions.gradient_accumulation,
        bias_activation_fusion=fusions.swiglu,
        masked_softmax_fusion=False,
        cuda_graph_scope=[],
    )


def _recompute(parallel: ParallelConfig) -> dict[str, Any]:
    """megatron-core's settings; selective recompute of attention "torch" is SelectiveLayer's, LeanLayer has its own."""
    if parallel.head_groups:
        return {}
    if parallel.recompute == "full" and parallel.recompute_layers:
        first = {"recompute_method": "block", "recompute_num_layers": parallel.recompute_layers}
        return {"recompute_granularity": "full", **first}
    if parallel.recompute == "full":
        return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    if parallel.recompute == "selective" and parallel.attention == "te":
        return {"recompute_granularity": "selective", "recompute_modules": ["mlp"]}
    return {}


def _layer_spec(config: mcore.TransformerConfig, parallel: ParallelConfig) -> Any:
    """The transformer block's submodules: megatron-core's layers around this project's norm and attention."""
    if parallel.attention == "te":
        problem = transformer_engine.problem()
        if problem is not None:
            raise UserError(problem)
        layer = mcore.get_gpt_layer_with_transformer_engine_spec(qk_layernorm=config.qk_layernorm)
        layer.submodules.self_attention.submodules.core_attention = TECoreAttention
        layer.submodules.self_attention.module = RotarySelfAttention
        return layer
    qk_norm = RMSNorm if config.qk_layernorm else mcore.IdentityOp
    layer = mcore.ModuleSpec(
        module=mcore.TransformerLayer,
        submodules=mcore.TransformerLayerSubmodules(
            input_layernorm=RMSNorm,
            self_attention=mcore.ModuleSpec(
                module=RotarySelfAttention,
                params={"attn_mask_type": mcore.AttnMaskType.causal},
                submodules=mcore.SelfAttentionSubmodules(
                    linear_qkv=mcore.ColumnParallelLinear,
                    core_attention=RingCoreAttention,
                    linear_proj=RowParallelLinear,
                    q_layernorm=qk_norm,
                    k_layernorm=qk_norm,
                ),
            ),
            self_attn_bda=mcore.get_bias_dropout_add,
            pre_mlp_layernorm=RMSNorm,
            mlp=mcore.ModuleSpec(
                module=mcore.MLP,
                submodules=mcore.MLPSubmodules(linear_fc1=mcore.ColumnParallelLinear, linear_fc2=RowParallelLinear),
            ),
            mlp_bda=mcore.get_bias_dropout_add,
            sharded_state_dict_keys_map=SAVED_NAMES,
        ),
    )
    if parallel.head_groups:
        layer = dataclasses.replace(layer, module=LeanLayer)
    layers = [layer] * mcore.get_num_layers_to_build(config)
    if parallel.recompute == "selective" and not parallel.head_groups:
        count = parallel.recompute_layers or len(layers)
        layers[:count] = [dataclasses.replace(layer, module=SelectiveLayer)] * min(count, len(layers))
    return mcore.TransformerBlockSubmodules(
        layer_specs=layers, layer_norm=LateNorm if parallel.head_groups else RMSNorm
    )


class LanguageModel(mcore.GPTModel):
    """GPTModel whose head and loss go through the sequence in chunks (model/loss.py).

    With labels and a loss mask it returns the weighted sum of the losses, or with `judges` what
    `likelihoods.judged` says of each label; without labels the logits, as GPTModel.
    """

    loss_options = DEFAULT
    offload = False
    judges = False

    def forward(self, *arguments: Any, **keywords: Any) -> Tensor:
        """As of GPTModel; with `offload`, what autograd saves of the layers' inputs goes to host memory."""
        if not (self.offload and torch.is_grad_enabled()):
            return super().forward(*arguments, **keywords)
        with saved_on_host(self.config.hidden_size, self.config.params_dtype):
            return super().forward(*arguments, **keywords)

    def _postprocess(
        self, hidden_states: Tensor, labels: Tensor | None = None, loss_mask: Tensor | None = None, **rest: Any
    ) -> Tensor:
        late = getattr(self.decoder, "final_layernorm", None)
        late = late if isinstance(late, LateNorm) else None
        if labels is None or not self.post_process:
            hidden_states = hidden_states if late is None else late.norm(hidden_states)
            return super()._postprocess(hidden_states=hidden_states, labels=labels, loss_mask=loss_mask, **rest)
        head = self.embedding.word_embeddings if self._head_is_embedding() else self.output_layer
        for hook in head._forward_pre_hooks.values():  # DDP's: the weight may still be on its way
            hook(head, ())
        weight_VD = head.weight
        return (judged if self.judges else sum_of_losses)(
            hidden_states,
            weight_VD,
            labels,
            torch.ones_like(labels, dtype=torch.float32) if loss_mask is None else loss_mask,
            mcore.parallel_state.get_tensor_model_parallel_group(),
            self.config.sequence_parallel,
            self.loss_options,
            late,
        )

    def _head_is_embedding(self) -> bool:
        """Whether this stage's head is its embedding, and not a copy that another stage's embedding is tied to."""
        return bool(self.share_embeddings_and_output_weights and self.pre_process)


def padded(vocabulary: int, tensor: int) -> int:
    """Rows of the embedding and the head: the next multiple of the tensor-parallel size. Those added are masked."""
    return -(-vocabulary // tensor) * tensor


def build_model(
    hf_config: dict[str, Any],
    rope: RopeScaling,
    parallel: ParallelConfig,
    precision: Literal["fp32", "bf16"],
    angles: Angles = "fp32",
    loss: LossOptions = DEFAULT,
    fusions: Fusions = NO_FUSIONS,
) -> mcore.GPTModel:
    """This rank's part of the model, with random weights, on the current device.

    Needs the process grid (engine.groups). Call it as
    `model(input_ids=, position_ids=, attention_mask=None, labels=, loss_mask=, packed_seq_params=SequenceLayout(...))`.

    Raises:
        UserError: the architecture is not supported.
    """
    vocabulary = hf_config["vocab_size"]
    config = transformer_config(hf_config, parallel, precision, fusions)
    model = LanguageModel(
        config=config,
        transformer_layer_spec=_layer_spec(config, parallel),
        vocab_size=padded(vocabulary, parallel.tensor),
        max_sequence_length=rope.length,
        pre_process=mcore.parallel_state.is_pipeline_first_stage(),
        post_process=mcore.parallel_state.is_pipeline_last_stage(),
        share_embeddings_and_output_weights=bool(hf_config.get("tie_word_embeddings")),
        position_embedding_type="rope",
        rotary_base=int(rope.base),
    )
    model.loss_options = dataclasses.replace(loss, vocabulary=vocabulary)
    model.offload = parallel.offload
    if parallel.head_groups:
        make_lean(model, LeanOptions(parallel.head_groups, parallel.mlp_chunk, parallel.recompute == "selective"))
    elif parallel.mlp_chunk:
        for layer in model.decoder.layers:
            tile(layer.mlp, parallel.mlp_chunk)
    model.rotary_pos_emb = Rotary(
        rope,
        rope.rotary_dim(head_dim(hf_config)),
        angles,
        dtype=config.params_dtype,
        group=mcore.parallel_state.get_context_parallel_group() if parallel.context > 1 else None,
    )
    return model
