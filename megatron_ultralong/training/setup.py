"""From a configuration to everything a run needs: processes, data, model, optimizer, schedule.

What can be wrong in the configuration is found before a model is built: see `reading.check_config`.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_ultralong.checkpoint.description import Description
from megatron_ultralong.checkpoint.loading import DamagedError, load_weights
from megatron_ultralong.config import reading
from megatron_ultralong.config.sections import RunConfig
from megatron_ultralong.context_parallel import kernel_choice
from megatron_ultralong.data.reading.blend import BlendedDataset
from megatron_ultralong.data.reading.dataset import PackedDataset
from megatron_ultralong.engine import determinism, groups
from megatron_ultralong.errors import UserError
from megatron_ultralong.families.defaults import completed
from megatron_ultralong.files import read_json
from megatron_ultralong.model import build
from megatron_ultralong.model.loss_options import LossOptions
from megatron_ultralong.rope import config_json, recipes
from megatron_ultralong.training import checkpoints, optimizing, sources
from megatron_ultralong.training.ahead import Ahead
from megatron_ultralong.training.needle_prompts import NeedlePrompt, prepare_needles

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class Run:
    """A run ready to train.

    Attributes:
        config: as given.
        model: this rank's GPTModel inside megatron-core's DDP (and Float16Module for bf16).
        weights: the GPTModel itself, whose names are the checkpoint's.
        optimizer: megatron-core's.
        scheduler: megatron-core's OptimizerParamScheduler.
        data: the blend of packed samples.
        description: what this run's checkpoints say of the model, at step 0.
        step: optimizer steps already done.
        samples: samples of the blend read before them.
        resumed_from: the checkpoint that held them, or None for a new run.
        device: where batches go.
        held_out: the sources of its validation.
        needles: and the needles of that.
        standing: what its validations have found so far (`validation.Standing`), for checkpoints; None: nothing yet.
        ahead: reads the next microbatch.
    """

    config: RunConfig
    model: torch.nn.Module
    weights: torch.nn.Module
    optimizer: Any
    scheduler: Any
    data: BlendedDataset
    description: Description
    step: int
    samples: int
    resumed_from: Path | None
    device: torch.device
    held_out: Sequence[PackedDataset] = ()
    needles: Sequence[NeedlePrompt] = ()
    standing: dict[str, Any] | None = None
    ahead: Ahead = dataclasses.field(default_factory=Ahead)

    def gather_weights(self) -> None:
        """Have every rank hold all that the last step updated, which overlap leaves to the next forward."""
        if optimizing.gathers_late(self.config.parallel):
            self.model.start_param_sync(force_sync=True)  # type: ignore[operator]

    def samples_before(self, step: int) -> int:
        """Samples of the blend that the run, resumed or not, has read before optimizer step `step`."""
        return self.samples + (step - self.step) * self.config.train.global_batch_size


def prepare(config: RunConfig, joined: Callable[[], None] = lambda: None) -> Run:
    """Check the configuration, join the processes, and build or load everything.

    Args:
        config: the run.
        joined: called on every rank once the processes have joined.

    Raises:
        UserError: anything in the configuration, the data or the checkpoint that cannot work.
    """
    hf_config = read_hf_config(config)
    reading.check_config(config, hf_config=hf_config, world_size=groups.world_size_from_environment())
    candidates = checkpoints.sound(config.checkpoint.save)
    resume_from = next(candidates, None)
    if config.train.deterministic:
        determinism.require()
    device = groups.initialize(config.parallel, config.train.seed)
    joined()
    data = sources.blend(config, sources.open_sources(config), resume_from)
    sources.say_what_is_read(data)
    tokenizer = data.datasets[0].tokenizer_fingerprint  # of every source and, as rank 0 saw, of model.hf
    if resume_from is not None:
        _check_rope_is_kept(config, resume_from)
    description = _describe(config, hf_config, resume_from or config.checkpoint.load, tokenizer)
    held_out = sources.open_held_out(config, data.datasets)
    needles = prepare_needles(config)
    run = build_run(config, description, data, device, None if resume_from else config.checkpoint.load)
    run.held_out, run.needles = held_out, needles
    if resume_from is not None:
        _resume(run, [resume_from], candidates)
    return run


def build_run(
    config: RunConfig, description: Description, data: BlendedDataset, device: torch.device, load: Path | None = None
) -> Run:
    """Model, optimizer and schedule on a grid that is laid; a rehearsal builds its own by this too.

    Args:
        config: the run, checked.
        description: the model and its rope.
        data: what it reads.
        device: of this process.
        load: a checkpoint to take the weights from.
    """
    if config.parallel.attention == "torch":
        kernel_choice.settle(config.parallel.kernel, _heads(config, description.hf_config, device))
    weights = build.build_model(
        description.hf_config,
        description.rope,
        config.parallel,
        config.train.precision,
        config.rope.angles,
        LossOptions(config.train.loss_chunk, config.train.z_loss),
        optimizing.fusions(config, device),
    ).to(device)
    if load is not None:
        load_weights(weights, load)
    model, optimizer = optimizing.optimize(weights, config)
    scheduler = optimizing.schedule(optimizer, config)
    return Run(config, model, weights, optimizer, scheduler, data, description, 0, data.first, None, device)


def _heads(config: RunConfig, hf_config: dict[str, Any], device: torch.device) -> kernel_choice.Heads:
    """What one rank attends with."""
    heads, ranks = hf_config["num_attention_heads"], config.parallel.tensor * config.parallel.ulysses
    kv_heads = hf_config.get("num_key_value_heads") or heads
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    return kernel_choice.Heads(
        device, dtype, heads // ranks, max(kv_heads // ranks, 1), config_json.head_dim(hf_config)
    )


def _resume(run: Run, first: list[Path], others: Iterator[Path]) -> None:
    """Load the newest checkpoint that can be loaded; every rank takes the same one, as rank 0 sees them."""
    for folder in itertools.chain(first, others):
        choice = [folder]
        dist.broadcast_object_list(choice)
        try:
            run.step = checkpoints.load_run(choice[0], run.weights, run.optimizer, run.scheduler, run.description.run)
        except DamagedError as error:  # nothing else: a disk that cannot be read says nothing of the checkpoint
            logger.warning("%s is damaged and passed over: %s", choice[0], error)
            continue
        if choice != first:  # which the data was opened for
            run.data = sources.blend(run.config, run.data.datasets, choice[0])
        run.samples, run.resumed_from = run.data.first, choice[0]
        run.standing = Description.read(choice[0]).validation
        logger.info("resuming from %s", choice[0])
        return


def _check_rope_is_kept(config: RunConfig, folder: Path) -> None:
    """Refuse to go on with another rope than that of the run's own checkpoint.

    Raises:
        UserError: what changes the rope was set otherwise when `folder` was written.
    """
    written = Description.read(folder).run
    before = {f"rope.{name}": value for name, value in written.get("rope", {}).items()}
    names = [field.name for field in dataclasses.fields(config.rope) if field.name != "angles"]  # a precision
    now = {f"rope.{name}": getattr(config.rope, name) for name in names}
    if config.rope.kind != "keep" and not config.rope.target_length:
        before["data.sequence_length"] = written.get("data", {}).get("sequence_length")
        now["data.sequence_length"] = config.data.sequence_length
    changed = [name for name, value in now.items() if before.get(name, value) not in (value, None)]
    if changed:
        name = changed[0]
        raise UserError(
            f"{name} is {now[name]}, but {folder} was trained with {before[name]}: one run has one rope; set it "
            "back, or give another checkpoint.save (and this folder as checkpoint.load, to extend further)."
        )


def read_hf_config(config: RunConfig) -> dict[str, Any]:
    """The config.json of `model.hf`."""
    mend = "set model.hf to a folder in Hugging Face format"
    value = read_json(config.model.hf / "config.json", "the model's configuration", mend)
    if not isinstance(value, dict):
        raise UserError(f"{config.model.hf / 'config.json'}: the model's configuration is no JSON object; {mend}.")
    return completed(value)


def _describe(config: RunConfig, hf_config: dict[str, Any], start: Path | None, tokenizer: str) -> Description:
    """The model of this run: the rope continues from that of the checkpoint it starts from, where there is one."""
    if start is None:
        own = config_json.read(hf_config, config.rope.original_length)
    else:
        loaded = Description.read(start)
        for key in ("architectures", "hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size"):
            if loaded.hf_config.get(key) != hf_config.get(key):
                raise UserError(
                    f"{start}: the checkpoint's {key} is {loaded.hf_config.get(key)}, that of model.hf "
                    f"{config.model.hf} is {hf_config.get(key)}; give the model that the checkpoint was made from."
                )
        own = loaded.rope
    return Description(
        hf_config=hf_config,
        rope=recipes.scaled(own, config.rope, config.data.sequence_length),
        tokenizer_fingerprint=tokenizer,
        step=0,
        run=reading.resolved(config, processes=groups.world_size_from_environment()),
    )
