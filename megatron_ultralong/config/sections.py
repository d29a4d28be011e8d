"""The run's configuration: frozen sections, one a concern, each field with its docstring.

`reading` reads them from strict TOML and writes the resolved JSON; [data] has a file of its own, `data_section`. A
field holds what was given; what follows from it is a property or a function, never another field. The model's
architecture is not here: it comes from the Hugging Face config.json in `model.hf`.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Literal

from megatron_ultralong.config.data_section import DataConfig, DataSource
from megatron_ultralong.config.validation_section import ValidationConfig

__all__ = [
    "CheckpointConfig",
    "DataConfig",
    "DataSource",
    "LogConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "RopeConfig",
    "RunConfig",
    "TrainConfig",
    "ValidationConfig",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model is trained."""

    hf: Path
    """Folder in Hugging Face format: its config.json gives the architecture, its tokenizer the vocabulary."""
    init: Literal["checkpoint", "random"] = "checkpoint"
    """Weights at step 0: from `checkpoint.load`, or drawn at random (to train a model from scratch)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """How positions are scaled to the new length (see docs/rope.md)."""

    kind: Literal["keep", "ultralong", "linear", "ntk", "llama3", "yarn"] = "keep"
    """"keep" leaves the model's own rope; "ultralong" is the paper's recipe for it; any other replaces it."""
    form: Literal["paper", "coded"] = "paper"
    """Of yarn: the paper's ramp in rotations, or the ramp in dimension index that serving stacks call yarn."""
    target_length: int = 0
    """Tokens of context to reach; 0: data.sequence_length."""
    original_length: int = 0
    """Tokens of context the frequencies are relative to; 0: the model's own original length, which must be given here
    where config.json leaves it open (linear scaling)."""
    alpha: float = 1.0
    """Rotations at or below which a dimension is fully scaled."""
    beta: float = 4.0
    """Rotations at or above which a dimension is kept."""
    temperature: bool = False
    """Scale the logits by YaRN's (0.1 ln s + 1) squared. With the paper's form an export folds it into the weights."""
    angles: Literal["fp32", "fp64"] = "fp32"
    """Precision of position x frequency: fp32 as serving stacks compute it, or fp64."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How the model and the sequence are spread over processes; data parallelism is what remains."""

    tensor: int = 1
    """Tensor parallel size (TP): divides the attention heads, and the key-value heads or is a multiple of them, which
    then lie on several ranks each."""
    pipeline: int = 1
    """Pipeline parallel size (PP)."""
    first_stage_layers: int = 0
    """Layers of the first pipeline stage, which also holds the embedding; 0: as many as the others."""
    last_stage_layers: int = 0
    """Layers of the last pipeline stage, which also holds the head and its loss; 0: as many as the others."""
    context: int = 1
    """Context parallel size (CP): each rank holds sequence_length / CP tokens."""
    ulysses: int = 1
    """Of the CP ranks, how many neighbours exchange heads for sequence (all-to-all); the ring spans the rest:
    context = ulysses x ring. 1: the ring alone; equal to context: no ring. The data lies the same for any choice."""
    sequence_parallel: bool = False
    """Split norms and dropouts along the sequence within the TP group; needs tensor > 1."""
    distributed_optimizer: bool = False
    """Spread optimizer state over the data-parallel ranks (ZeRO-1)."""
    overlap_grad_reduce: bool = True
    """Add gradients up over data-parallel ranks while backward goes on, a bucket at a time; False: after it."""
    overlap_param_gather: bool = True
    """With the distributed optimizer, gather the updated weights while the next forward goes on; False: before it."""
    ddp_bucket_size: int = 0
    """Parameters in a bucket of the two overlaps; 0: megatron-core's choice, 40M, or 1M a data-parallel rank."""
    attention: Literal["torch", "te"] = "torch"
    """Ring attention over PyTorch's own flash kernels, or Transformer Engine's context parallelism."""
    kernel: Literal["auto", "cudnn", "flash2", "flash3", "torch"] = "auto"
    """Of attention "torch" on GPUs, which kernel computes a block: cuDNN's, flash-attn 2 or 3 where installed, or
    PyTorch's own flash kernel; "auto" takes the fastest that the heads allow. Whichever it is must first agree with
    plain matrix products as the run starts; one that does not is passed over with a warning."""
    cp_comm_type: Literal["p2p", "all_gather", "a2a", "a2a+p2p"] = "p2p"
    """Of attention "te": Transformer Engine's ring, all keys and values gathered, heads for sequence, or the last
    within `ulysses` neighbours and the ring across."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Keep every activation; or each layer's input and attention's output, so that backward computes all but
    attention again; or each layer's input alone."""
    recompute_layers: int = 0
    """With recompute, the first so many layers of each pipeline stage; 0: all. With attention "te", of "full" alone."""
    mlp_chunk: int = 0
    """Positions that go through an MLP at once, which backward computes again; 0: all, kept as recompute says."""
    offload: bool = False
    """Keep the layer inputs of recompute "full" in host memory; with head_groups also what "selective" keeps."""
    head_groups: int = 0
    """A layer that keeps little: its attention so many groups of a rank's heads at a time, all else by tiles of
    mlp_chunk positions (0: 4096 over the TP group), recomputed as recompute says. It divides the rank's key-value
    heads, or is a multiple of them that divides the query heads. 0: layers as megatron-core's."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """"auto": GPU where there is one."""
    timeout: int = 600
    """Seconds after which a collective that a rank never joined is an error; a rank that stops answering for half of
    them ends the others, which say its number, the step and the collective."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, how wide, how precise."""

    steps: int
    """Optimizer steps in all, those before a resume included."""
    global_batch_size: int
    """Samples an optimizer step, over all data-parallel ranks and microbatches."""
    micro_batch_size: int = 1
    """Samples a forward pass on one data-parallel rank."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Of weights and activations; bf16 keeps fp32 main weights."""
    grad_reduce_in_fp32: bool = True
    """With bf16: add up gradients, over microbatches and ranks, in fp32. False: in bf16, which halves their memory and
    traffic, and rounds every addition."""
    gradient_accumulation_fusion: bool = True
    """Let the matrix product that makes a weight's gradient add it to the buffer itself: apex's extension where it is
    installed, else PyTorch's addmm. False, and with parallel.mlp_chunk or recompute "selective" always: make it in the
    model's precision, then add it."""
    swiglu_fusion: bool = True
    """On a GPU, megatron-core's fused SwiGLU, which torch.compile builds and which keeps its input alone; False, and
    on a CPU always: PyTorch's operators one by one."""
    prefetch: bool = True
    """Read the next microbatch while the present one is computed."""
    loss_chunk: int = 0
    """Positions whose logits exist at once on a rank; 0: as many as fill 1 GiB."""
    z_loss: float = 0.0
    """Weight of the squared log of the softmax's denominator, which keeps logits from drifting; 0: none."""
    seed: int = 1234
    """Of initial weights and of the order of samples."""
    deterministic: bool = False
    """On GPUs: the same bytes on every run and after every resume, as on a CPU anyway. Attention's backward then orders
    its additions, which takes time and memory (docs/training.md); an operator without such a form is an error."""
    max_skipped: int = 3
    """Steps in a row whose loss or gradient is not finite that are skipped; one more ends the run, with a checkpoint
    of the state before them."""
    time_limit: str = ""
    """[D-]HH:MM:SS as SLURM writes it, from the start of this process: the run saves and exits before a step that
    would end past it, as it does on SIGTERM and SIGUSR1. Empty: no limit."""
    requeue_code: int = 0
    """Exit status of a run that saved and left before its last step (SIGTERM, SIGUSR1, train.time_limit), so that a
    batch script can tell it from a finished one, which exits with 0. srun keeps it; torchrun makes 1 of any but 0."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam and its schedule; the defaults are the paper's for continued pretraining."""

    learning_rate: float = 3e-5
    """Peak learning rate."""
    min_learning_rate: float = 0.0
    """Where the decay ends."""
    warmup_steps: int = 0
    """Steps of linear warmup from 0."""
    decay: Literal["constant", "linear", "cosine"] = "constant"
    """Shape of the decay from the end of the warmup to the last step."""
    weight_decay: float = 0.1
    """Decoupled weight decay, not applied to norms and biases."""
    beta1: float = 0.9
    """Adam's first decay rate."""
    beta2: float = 0.95
    """Adam's second decay rate."""
    eps: float = 1e-8
    """Adam's epsilon."""
    clip_grad: float = 1.0
    """Largest global gradient norm; 0: no clipping."""
    fused: bool = True
    """Adam in one kernel: Transformer Engine's or apex's where installed, else PyTorch's; False: its operators one
    by one (those two have no other)."""
    offload_fraction: float = 0.0
    """Share of the main weights and Adam's moments that lies in host memory and is stepped there, by PyTorch's fused
    Adam for CPUs: 1 leaves none of it on the GPU; whole parameters go, as many as fit into the share. 0: none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Where weights come from and go to."""

    load: Path | None = None
    """Checkpoint folder to start from (weights only): tools/convert_hf_to_megatron.py's, or a run's step_N."""
    save: Path | None = None
    """Folder of this run's checkpoints (step_N below it). A run that finds one there resumes from the newest."""
    interval: int = 0
    """Steps between checkpoints; 0: only the last step."""
    async_save: bool = False
    """Write in the background while training goes on: the copy in host memory takes a pause, the disk none. One
    checkpoint at a time; it counts once it is complete, at the end of a later step."""
    keep_last: int = 0
    """Newest checkpoints to keep, older ones are deleted once a newer is complete; 0: all. With 1, a damaged newest
    leaves nothing to go back to."""
    keep_every: int = 0
    """Checkpoints of multiples of this many steps are kept whatever keep_last says; 0: none of them."""
    export_interval: int = 0
    """Steps between exports in Hugging Face format, to hf/step_N of checkpoint.save, by a process beside the run that
    reads the saved checkpoint; 0: none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is recorded."""

    metrics: Path | None = None
    """JSON Lines file, one line a step and one a validation; default: metrics.jsonl in checkpoint.save."""
    tensorboard: Path | None = None
    """Folder of TensorBoard event files; default: tensorboard in checkpoint.save."""
    wandb: str = ""
    """Weights & Biases project that the metrics also go to; empty: none."""
    spike: float = 8.0
    """A loss this many deviations above the median of the last 64 is named and marked in the metrics; 0: none is."""
    interval: int = 10
    """Steps between lines where the output is no terminal; a terminal shows every step."""
    profile: int = 0
    """Steps to trace with torch.profiler, from the second on: a Chrome trace a rank in trace/ of checkpoint.save."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run: python -m megatron_ultralong.train --config run.toml."""

    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    rope: RopeConfig = RopeConfig()
    parallel: ParallelConfig = ParallelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    validation: ValidationConfig = dataclasses.field(default=ValidationConfig())
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()

    @property
    def padded_length(self) -> int:
        """Positions of a sample as the ranks hold it: data.sequence_length, or the next length that they divide."""
        length = self.data.sequence_length
        return self.divisible(length) if self.data.pad_to_divisible else length

    def divisible(self, length: int) -> int:
        """The next length from `length` on that context- and sequence-parallel ranks divide."""
        parallel = self.parallel
        chunks = 2 if parallel.context > 1 else 1
        parts = parallel.context * math.lcm(chunks, parallel.tensor if parallel.sequence_parallel else 1)
        return -(-length // parts) * parts
