"""Whether a run's checkpoints can be what its configuration says: checked before anything is built, without torch."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_ultralong.config.sections import RunConfig
from megatron_ultralong.files import writable


def checkpoint_problems(config: RunConfig) -> Iterator[str]:
    """Weights from nowhere, or from two places; checkpoints that no option can mean."""
    load, save = config.checkpoint.load, config.checkpoint.save
    every, interval = config.checkpoint.keep_every, config.checkpoint.interval
    if every and not config.checkpoint.keep_last:
        yield f"checkpoint.keep_every is {every}, but checkpoint.keep_last is 0, which keeps all; give both or neither."
    if every and interval and every % interval:
        yield (
            f"checkpoint.keep_every is {every}, no multiple of checkpoint.interval {interval}, so hardly a checkpoint "
            f"would be kept by it; give a multiple of {interval}."
        )
    lines, events = config.log.metrics, config.log.tensorboard
    places = {"checkpoint.save": save, "log.metrics": lines and lines.parent, "log.tensorboard": events}
    for name, folder in places.items():
        if folder is not None and not writable(folder):
            yield f"{name} needs the folder {folder}, but nothing can be written there; give another place."
    export = config.checkpoint.export_interval
    if export and save is None:
        yield f"checkpoint.export_interval is {export}, but nothing is saved; give checkpoint.save, or set it to 0."
    elif export and not (interval and export % interval == 0) and export != config.train.steps:
        yield (
            f"checkpoint.export_interval is {export}, but only a saved checkpoint can be exported; "
            f"give a multiple of checkpoint.interval {interval}, or train.steps {config.train.steps}."
        )
    resumable = save is not None and any(save.glob("step_*"))
    if config.model.init == "random" and load is not None:
        yield (
            f'model.init is "random" and checkpoint.load is {load}; '
            'remove checkpoint.load, or set model.init to "checkpoint".'
        )
    elif config.model.init == "checkpoint" and load is None and not resumable:
        yield (
            'model.init is "checkpoint", but checkpoint.load is not given and checkpoint.save holds no step_N to '
            "resume from; give checkpoint.load a folder written by tools/convert_hf_to_megatron.py."
        )
    elif config.model.init == "checkpoint" and load is not None and not resumable and not load.is_dir():
        yield f"checkpoint.load is {load}, which is no folder; convert the model with tools/convert_hf_to_megatron.py."
