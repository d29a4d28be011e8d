"""Which settings of Adam, its schedule and its memory cannot work: checked before anything is built, without torch."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_ultralong.config.sections import OptimizerConfig, RunConfig

_DEFAULT = OptimizerConfig()


def optimizer_problems(config: RunConfig) -> Iterator[str]:
    """Each mistake in a sentence with its field, value and mend."""
    yield from _adam(config)
    yield from _placement(config)


def _adam(config: RunConfig) -> Iterator[str]:
    """Numbers that Adam or its schedule cannot take."""
    section, steps = config.optimizer, config.train.steps
    for name in ("beta1", "beta2"):
        value = getattr(section, name)
        if not 0 <= value < 1:
            yield f"optimizer.{name} is {value}; give a rate from 0 to below 1, such as {getattr(_DEFAULT, name)}."
    if section.eps <= 0:
        yield f"optimizer.eps is {section.eps}; give a small number above 0, such as {_DEFAULT.eps}."
    if section.min_learning_rate > section.learning_rate:
        yield (
            f"optimizer.min_learning_rate is {section.min_learning_rate}, above optimizer.learning_rate "
            f"{section.learning_rate}, which decays towards it; swap or mend them."
        )
    if section.warmup_steps > steps:
        yield (
            f"optimizer.warmup_steps is {section.warmup_steps}, more than train.steps {steps}, so the learning rate "
            f"would never be reached; give at most {steps}."
        )


def _placement(config: RunConfig) -> Iterator[str]:
    """Where gradients are added up, and where Adam's state lies."""
    half, share = config.train.precision == "bf16", config.optimizer.offload_fraction
    if not config.train.grad_reduce_in_fp32 and not half:
        yield (
            'train.grad_reduce_in_fp32 is false with train.precision "fp32", whose gradients are fp32; remove it, or '
            'set train.precision to "bf16".'
        )
    if share > 1:
        yield f"optimizer.offload_fraction is {share}; give a share from 0 to 1."
