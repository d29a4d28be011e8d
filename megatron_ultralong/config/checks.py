"""What fits field by field but cannot run together: found before any model is built, and all of it at once.

Each rule is a line of arithmetic over the configuration, the model's config.json and tokenizer.json, the number of
processes and the manifests of the packed indexes; nothing else is read and torch is not imported. Costs
milliseconds. Whether the samples fit the rope is `rope.recipes.scaled`'s to say, which knows the checkpoint's.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_ultralong.checkpoint.checkpoint_checks import checkpoint_problems
from megatron_ultralong.config.sections import ParallelConfig, RunConfig
from megatron_ultralong.config.stages import stage_problems
from megatron_ultralong.config.validation_checks import validation_problems
from megatron_ultralong.context_parallel.requirements import attention_problems, tensor_problem
from megatron_ultralong.engine.optimizer_checks import optimizer_problems
from megatron_ultralong.errors import UserError, raise_problems
from megatron_ultralong.files import read_json
from megatron_ultralong.progress import seconds_of
from megatron_ultralong.rope.rope_checks import rope_problems

_AT_LEAST_ONE = (
    "data.sequence_length train.steps train.global_batch_size train.micro_batch_size "
    "parallel.tensor parallel.pipeline parallel.context parallel.ulysses parallel.timeout log.interval"
).split()
_AT_LEAST_ZERO = (
    "rope.target_length rope.original_length optimizer.learning_rate optimizer.min_learning_rate "
    "optimizer.warmup_steps optimizer.weight_decay optimizer.clip_grad checkpoint.interval checkpoint.export_interval "
    "train.loss_chunk train.z_loss parallel.recompute_layers parallel.mlp_chunk train.requeue_code log.profile "
    "checkpoint.keep_last checkpoint.keep_every train.max_skipped log.spike optimizer.offload_fraction "
    "parallel.ddp_bucket_size parallel.first_stage_layers parallel.last_stage_layers parallel.head_groups"
).split()


def check_config(config: RunConfig, *, hf_config: dict[str, Any], world_size: int, inputs: bool = True) -> None:
    """Raise if the run cannot work as configured.

    Args:
        config: the run.
        hf_config: the model's config.json.
        world_size: processes that torchrun started.
        inputs: look at the packed data and the checkpoint too; False: they are yet to be made.

    Raises:
        UserError: every mistake, one a line, with its field, value and mend.
    """
    problems = list(_ranges(config))
    if not problems:  # the rules divide by sizes and so need them positive
        problems += _layout(config, world_size)
        problems += _sharding(config.parallel, config.padded_length, hf_config)
        problems += optimizer_problems(config)
        problems += _labels(config, world_size)
        problems += attention_problems(config, hf_config)
        problems += rope_problems(config)
        problems += validation_problems(config, hf_config)
        if inputs:
            problems += _data(config, hf_config)
            problems += checkpoint_problems(config)
        problems += _log(config)
        problems += _stopping(config)
    raise_problems("the configuration", problems)


def _ranges(config: RunConfig) -> Iterator[str]:
    """Numbers that are too small, whatever the other fields say."""
    for names, least in ((_AT_LEAST_ONE, 1), (_AT_LEAST_ZERO, 0)):
        for name in names:
            section, _, field = name.partition(".")
            value = getattr(getattr(config, section), field)
            if value < least:
                yield f"{name} is {value}; give {least} or more."
    for place, source in enumerate(config.data.sources):
        if source.weight <= 0:
            yield f"data.sources.{place}.weight is {source.weight}; give a weight above 0 or remove the source."


def _layout(config: RunConfig, world_size: int) -> Iterator[str]:
    """Processes, batches and the zig-zag cut."""
    parallel, train, length = config.parallel, config.train, config.padded_length
    model_size = parallel.tensor * parallel.pipeline * parallel.context
    if world_size % model_size:
        yield (
            f"{world_size} processes are no multiple of parallel.tensor {parallel.tensor} x parallel.pipeline "
            f"{parallel.pipeline} x parallel.context {parallel.context} = {model_size}; "
            "start another number (torchrun --nproc-per-node) or mend the sizes."
        )
    else:
        data_parallel = world_size // model_size
        together = train.micro_batch_size * data_parallel
        if train.global_batch_size % together:
            yield (
                f"train.global_batch_size is {train.global_batch_size}, not a multiple of train.micro_batch_size "
                f"{train.micro_batch_size} x data-parallel size {data_parallel}; give a multiple of {together}."
            )
    if parallel.context > 1 and length % (2 * parallel.context):
        yield (
            f"data.sequence_length is {length}, not divisible by 2 x parallel.context = {2 * parallel.context}, "
            "the chunks of the zig-zag cut; pack the data for another length, change parallel.context, or set "
            "data.pad_to_divisible to true."
        )
    if any(config.data.masks) and train.micro_batch_size > 1:
        yield (
            f"train.micro_batch_size is {train.micro_batch_size} with {config.data.mask_field} true, but each sample "
            "has documents of its own; set train.micro_batch_size to 1."
        )


def _labels(config: RunConfig, world_size: int) -> Iterator[str]:
    """megatron-core counts one rank's labels of a step in 32 bits; those of the whole job this project adds in 64."""
    parallel = config.parallel
    ranks = max(1, world_size // (parallel.tensor * parallel.pipeline))
    labels = config.train.global_batch_size * config.padded_length // ranks
    if labels >= 2**31:
        yield (
            f"train.global_batch_size {config.train.global_batch_size} is {labels} labels a step on one rank, which "
            f"megatron-core counts in 32 bits; give at most {(2**31 - 1) * ranks // config.padded_length}."
        )


def _sharding(parallel: ParallelConfig, length: int, hf_config: dict[str, Any]) -> Iterator[str]:
    """What tensor and pipeline parallelism must divide."""
    heads = hf_config["num_attention_heads"]
    kv_heads = hf_config.get("num_key_value_heads") or heads
    problem = tensor_problem(heads, kv_heads, parallel.tensor)
    if problem is not None:
        yield f"parallel.tensor is {parallel.tensor}, {problem}"
    yield from stage_problems(parallel, hf_config["num_hidden_layers"])
    if parallel.recompute_layers and parallel.recompute == "none":
        yield (
            f'parallel.recompute_layers is {parallel.recompute_layers} with parallel.recompute "none"; '
            "remove one of them."
        )
    kept = ("full", "selective") if parallel.head_groups else ("full",)
    if parallel.offload and parallel.recompute not in kept:
        yield (
            f'parallel.offload is true with parallel.recompute "{parallel.recompute}"; set that to "full", whose layer '
            "inputs it moves to the host, or remove parallel.offload."
        )
    if parallel.sequence_parallel and parallel.tensor == 1:
        yield "parallel.sequence_parallel is true with parallel.tensor 1; set it to false or raise parallel.tensor."
    elif parallel.sequence_parallel and length // parallel.context % parallel.tensor:
        yield (
            f"data.sequence_length / parallel.context is {length // parallel.context} tokens, not divisible by "
            f"parallel.tensor {parallel.tensor} as parallel.sequence_parallel needs; change one of them, or set "
            "data.pad_to_divisible to true."
        )


def _data(config: RunConfig, hf_config: dict[str, Any]) -> Iterator[str]:
    """Indexes packed for another length, or of another vocabulary than the model's."""
    length = config.data.sequence_length
    silent = []  # manifests of the sources whose separators the section says do not count
    fields = {"data": config.data.sources, "validation": config.validation.sources}
    for name, source in ((f"{name}.sources.{n}", each) for name, some in fields.items() for n, each in enumerate(some)):
        try:
            manifest = read_manifest(source.index)
        except UserError as error:
            yield str(error)
            continue
        if source.loss_on_separators is None and not config.data.loss_on_separators:
            silent.append(manifest)
        elif source.loss_on_separators is False and not manifest.get("separator"):
            yield (
                f"{name}.loss_on_separators is false, but {source.index} has no separators; remove "
                f"{name}.loss_on_separators."
            )
        where = source.index / "manifest.json"
        if manifest["sequence_length"] != length:
            yield (
                f"{where}: packed for sequence_length {manifest['sequence_length']}, but data.sequence_length is "
                f"{length}; pack again with tools/pack_corpus.py or change data.sequence_length."
            )
        if manifest["vocab_size"] > hf_config["vocab_size"]:
            yield (
                f"{where}: tokens of a vocabulary of {manifest['vocab_size']}, but the model has "
                f"{hf_config['vocab_size']}; tokenize with the model's own tokenizer."
            )
    if silent and not any(manifest.get("separator") for manifest in silent):
        yield "data.loss_on_separators is false, but no source has separators; remove data.loss_on_separators."


def read_manifest(index: Path) -> dict[str, Any]:
    """The manifest of a packed index, with the entries that this file compares.

    Raises:
        UserError: missing, not JSON, or without one of them.
    """
    path = index / "manifest.json"
    mend = "pack the data with tools/pack_corpus.py"
    manifest: dict[str, Any] = read_json(path, "the manifest of the packed index", mend)
    for key in ("sequence_length", "vocab_size", "tokenizer_fingerprint"):
        if key not in manifest:
            raise UserError(f"{path}: no entry {key!r}; {mend}.")
    return manifest


def _log(config: RunConfig) -> Iterator[str]:
    """Records that need a package which is missing."""
    if config.log.wandb and importlib.util.find_spec("wandb") is None:
        yield (
            f"log.wandb is {config.log.wandb!r}, but Weights & Biases is not installed; "
            'run pip install "megatron-ultralong[wandb]", or remove log.wandb.'
        )
    if config.log.profile and config.checkpoint.save is None:
        yield f"log.profile is {config.log.profile}, but checkpoint.save is not given; its traces go below that."


def _stopping(config: RunConfig) -> Iterator[str]:
    """When a run leaves before its last step, and with what status."""
    train = config.train
    try:
        limit = seconds_of(train.time_limit) if train.time_limit else None
    except ValueError as error:
        yield f"train.time_limit is {error}; give HH:MM:SS or D-HH:MM:SS."
    else:
        if limit == 0:
            yield f"train.time_limit is {train.time_limit!r}, no time at all; give more, or an empty text for no limit."
    if train.requeue_code > 125:
        yield f"train.requeue_code is {train.requeue_code}; give at most 125: shells mean signals by what is above."
    if config.checkpoint.save is None and (train.time_limit or train.requeue_code):
        given = "train.time_limit" if train.time_limit else "train.requeue_code"
        yield f"{given} is given, but checkpoint.save is not, so the steps done would be lost; give a folder."
