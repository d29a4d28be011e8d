"""Memory of a training step by part, computed before anything is built: what a dry run prints beside what it measures.

Pure arithmetic over sizes, for one rank. Counted are the tensors that autograd keeps and the largest that exist for a
moment, as this project's layers make them with attention "torch": norms in parts as PyTorch computes them on a CPU (a
fused one keeps less), a gated MLP unfused. Left out are biases, norms of heads, tables of positions, the batch itself,
buffers of NCCL, the tensors that stages pass on,
and what an allocator loses.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from megatron_ultralong.config.sections import RunConfig
from megatron_ultralong.config.stages import layers_of_stages
from megatron_ultralong.context_parallel.ring_memory import RingMemory, ring_memory
from megatron_ultralong.model.loss_options import LossOptions, chunk_rows
from megatron_ultralong.planning.flops import ModelShape


@dataclasses.dataclass
class StepMemory:
    """Bytes on one rank.

    Attributes:
        weights: the model's parameters.
        gradients: megatron-core's gradient buffers.
        optimizer: Adam's moments and, for bf16, the fp32 main weights; sized by the first step.
        activations: what forward passes leave for their backward, at most.
        attention: at most while one layer attends in forward, beyond what was held before.
        loss: at most in the head and the loss, gradients of both included, beyond what was held before.
        peak: at most during the step, beyond weights, gradients and optimizer.
    """

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    attention: int = 0
    loss: int = 0
    peak: int = 0

    @property
    def total(self) -> int:
        """Everything at once, at the step's highest point."""
        return self.weights + self.gradients + self.optimizer + self.peak


def loss_memory(rows: int, labels: int, width: int, vocabulary: int, element: int, ranks: int = 1) -> int:
    """Bytes that model/loss.py holds at most for the head and the loss, beyond its inputs; on one rank.

    Two gradients stay: the hidden states' and, in fp32, the head's. Beside them a chunk's logits, in fp32 and in the
    model's precision, or what it adds to either gradient; with sequence parallelism also its gathered hidden states.
    (On a CPU that addition makes an fp32 copy of a bf16 head's gradient besides. Where only some positions of a chunk
    have labels, their hidden states and gradients are copies, of at most a chunk's size each.)

    Args:
        rows: positions in a chunk, over all ranks that gather them.
        labels: positions of this rank's hidden states.
        width: D.
        vocabulary: V / tp.
        element: bytes of a number in the model's precision, 2 or 4.
        ranks: that gather them: tp with sequence parallelism, else 1.
    """
    rows = min(rows, labels * ranks)
    logits, chunk, head = rows * vocabulary, rows * width * element, vocabulary * width
    gathered = chunk if ranks > 1 else 0
    if element == 4:
        most = 4 * logits + gathered
    else:
        most = max((4 + element) * logits, element * (logits + head), element * logits + gathered)
    return labels * width * element + 4 * head + gathered + most


def eager_loss_memory(labels: int, vocabulary: int) -> int:
    """The same of whole logits and torch's cross_entropy: three of them in fp32 at the peak, in backward."""
    return 3 * 4 * labels * vocabulary


@dataclasses.dataclass(frozen=True)
class _Rank:
    """One rank's share of the model and the batch.

    Attributes:
        shape: the model.
        config: the run.
        tied: the head is the embedding.
        stage: of the pipeline.
        data_parallel: ranks that hold the same share of the weights, context-parallel ones included.
        microbatches: a step's, on this rank.
        gpu: it computes on one, so the host's memory is another.
    """

    shape: ModelShape
    config: RunConfig
    tied: bool
    stage: int
    data_parallel: int
    microbatches: int
    gpu: bool

    @property
    def element(self) -> int:
        return 2 if self.config.train.precision == "bf16" else 4

    @property
    def tokens(self) -> int:
        """Of a microbatch, as attention and the MLP see them."""
        return self.config.padded_length // self.config.parallel.context * self.config.train.micro_batch_size

    @property
    def split_tokens(self) -> int:
        """As norms see them."""
        return self.tokens // (self.config.parallel.tensor if self.config.parallel.sequence_parallel else 1)

    @property
    def layers(self) -> int:
        return layers_of_stages(self.config.parallel, self.shape.layers)[self.stage]

    @property
    def last(self) -> bool:
        return self.stage == self.config.parallel.pipeline - 1

    @property
    def vocabulary(self) -> int:
        return -(-self.shape.vocabulary // self.config.parallel.tensor)

    def parameters(self) -> int:
        """Elements of this rank's weights."""
        layer = self.shape.layer_weights // self.config.parallel.tensor + 2 * self.shape.hidden
        table = self.vocabulary * self.shape.hidden
        head = self.shape.hidden + (0 if self.tied and self.stage == 0 else table) if self.last else 0
        return self.layers * layer + (table if self.stage == 0 else 0) + head

    def norm(self) -> int:
        """Kept of a norm: its input and the normed input in fp32; not its output."""
        return 8 * self.split_tokens * self.shape.hidden

    def mlp(self, tokens: int) -> int:
        """Kept of an MLP: gate and up, silu, the other factor, their product."""
        return 5 * self.element * tokens * self.shape.ffn // self.config.parallel.tensor

    def heads(self, of_queries: int, of_keys: int) -> int:
        """Bytes of so many times all queries and all keys of this rank."""
        elements = (of_queries * self.shape.heads + of_keys * self.shape.kv_heads) * self.shape.head_dim
        return self.tokens * elements // self.config.parallel.tensor * self.element

    def attention(self) -> int:
        """Kept of attention: its input, the unsplit projection, rotated queries and keys, output and log-sum-exp."""
        return self.layer_input() + self.heads(3, 3) + self.ring().saved

    def layer_input(self) -> int:
        return self.split_tokens * self.shape.hidden * self.element

    def layer(self) -> int:
        """Kept of a layer when nothing is recomputed."""
        mlp = 0 if self.config.parallel.mlp_chunk else self.mlp(self.tokens)
        return 2 * self.norm() + self.attention() + self.layer_input() + mlp

    def kept_layer(self) -> int:
        """Kept of a layer that is recomputed."""
        parallel = self.config.parallel
        if parallel.recompute == "none":
            return self.layer()
        if parallel.recompute == "full":
            return 0 if parallel.offload and self.gpu else self.layer_input()
        return self.layer_input() + self.heads(1, 0) + self.ring().saved

    def ring(self) -> RingMemory:
        parallel, train = self.config.parallel, self.config.train
        inner = parallel.ulysses
        return ring_memory(
            batch=train.micro_batch_size,
            local_length=self.config.padded_length // parallel.context * inner,
            heads=self.shape.heads // parallel.tensor // inner,
            kv_heads=max(1, self.shape.kv_heads // parallel.tensor // inner),
            head_dim=self.shape.head_dim,
            bytes_per_element=self.element,
            cp_size=parallel.context // inner,
        )

    def exchanged(self) -> int:
        """What is sent, what arrives and what is made of it when heads are exchanged, and the output once more."""
        return self.heads(4, 6) if self.config.parallel.ulysses > 1 else 0


def predict(config: RunConfig, hf_config: dict[str, Any], world_size: int, stage: int, gpu: bool) -> StepMemory:
    """Memory of a step on a rank of pipeline stage `stage`, which computes on a GPU or not."""
    parallel, train = config.parallel, config.train
    copies = world_size // (parallel.tensor * parallel.pipeline)
    rank = _Rank(
        ModelShape.from_hf(hf_config),
        config,
        bool(hf_config.get("tie_word_embeddings")),
        stage,
        copies,
        train.global_batch_size // (train.micro_batch_size * (copies // parallel.context)),
        gpu,
    )
    parameters, element = rank.parameters(), rank.element
    owned = parameters // (copies if parallel.distributed_optimizer else 1)
    grad = 4 if train.grad_reduce_in_fp32 else element
    memory = StepMemory(
        weights=parameters * element,
        gradients=parameters * grad,
        optimizer=int((12 if element == 2 else 8) * owned * (1 - config.optimizer.offload_fraction)),
        attention=rank.ring().forward + rank.heads(1, 0) + rank.exchanged(),
        loss=_loss(rank) if rank.last else 0,
    )
    recomputed = parallel.recompute_layers or rank.layers
    layers = recomputed * rank.kept_layer() + (rank.layers - recomputed) * rank.layer()
    kept_by_loss = rank.layer_input() + rank.vocabulary * rank.shape.hidden * 4 if rank.last else 0
    one = layers + (rank.norm() + kept_by_loss if rank.last else 0)
    memory.activations = one * min(rank.microbatches, parallel.pipeline - stage)
    without_loss = memory.activations - kept_by_loss
    memory.peak = max(
        without_loss + _backward_of_a_layer(rank),
        without_loss + rank.layer_input() + memory.loss if rank.last else 0,
        0 if grad == 4 else 4 * owned,  # the update's gradients in fp32
    )
    return memory


def _loss(rank: _Rank) -> int:
    parallel = rank.config.parallel
    ranks = parallel.tensor if parallel.sequence_parallel else 1
    rows = chunk_rows(LossOptions(chunk=rank.config.train.loss_chunk), rank.vocabulary, ranks) * ranks
    return loss_memory(rows, rank.split_tokens, rank.shape.hidden, rank.vocabulary, rank.element, ranks)


def _backward_of_a_layer(rank: _Rank) -> int:
    """The most that a layer's backward needs beside what all layers kept: in its MLP, or in its attention."""
    parallel = rank.config.parallel
    layer = rank.layer() - (rank.layer_input() if rank.element == 4 else 0)  # its input, as the first norm keeps it
    again = {"none": 0, "selective": layer - rank.heads(1, 0), "full": layer}[parallel.recompute]
    tile = min(rank.tokens, parallel.mlp_chunk * rank.config.train.micro_batch_size or rank.tokens)
    weight = 2 * rank.shape.ffn * rank.shape.hidden // parallel.tensor * rank.element
    mlp = weight + 2 * rank.mlp(tile) // 5
    freed = rank.mlp(rank.tokens) + rank.norm()
    if parallel.mlp_chunk:
        mlp, freed = mlp + rank.mlp(tile), rank.norm()
    attention = rank.ring().backward + rank.heads(2, 2) + rank.exchanged() - freed
    return again + rank.layer_input() + max(mlp, attention)
