"""What an optimizer step and a validation are measured by.

A field of a step is a column of metrics.jsonl, TensorBoard and W&B; so is each metric of a validation, by its name.
"""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class StepMetrics:
    """One optimizer step.

    Attributes:
        step: 1 for the first.
        loss: mean over the step's labels, in nats a token.
        grad_norm: global, before clipping.
        learning_rate: at this step.
        skipped: the loss or the gradient was not finite, and the weights are as before.
        spike: the loss jumped (see `anomalies`).
        tokens: labels that counted, over all ranks.
        samples: read since the run's beginning, over all ranks: the position in the data.
        seconds: wall time of the step.
        tokens_per_second: tokens processed (labels or not) over `seconds`.
        tokens_per_second_per_rank: that over the number of processes (GPUs).
        tflops_per_rank: the model's own operations (planning/flops.py) a second and process, in 10^12.
        mfu: their share of the GPU's dense bf16 peak; None where that is not known (a CPU).
        memory_gib: most memory that rank 0 held so far: of the GPU, or of the process on a CPU.
        loss_by_source: of several sources, by name, the mean loss over the labels that this step had of each; one of
            which it had none is missing, and all are where a microbatch mixes them (see `step.told_apart`).
        tokens_by_source: those labels, over all ranks.
        samples_by_source: read of each since the run's beginning.
    """

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    skipped: bool
    spike: bool
    tokens: int
    samples: int
    seconds: float
    tokens_per_second: float
    tokens_per_second_per_rank: float
    tflops_per_rank: float
    mfu: float | None
    memory_gib: float
    loss_by_source: dict[str, float] = dataclasses.field(default_factory=dict)
    tokens_by_source: dict[str, int] = dataclasses.field(default_factory=dict)
    samples_by_source: dict[str, int] = dataclasses.field(default_factory=dict)

    def flat(self) -> dict[str, Any]:
        """Every number by a name of its own: of a source as loss_by_source/NAME."""
        found: dict[str, Any] = {}
        for name, value in dataclasses.asdict(self).items():
            if isinstance(value, dict):
                found |= {f"{name}/{source}": number for source, number in value.items()}
            else:
                found[name] = value
        return found


@dataclasses.dataclass(frozen=True)
class ValidationMetrics:
    """One validation.

    Attributes:
        step: optimizer steps done before it; 0: none.
        metrics: by name (`validation_checks.metric_names`): losses in nats a token, perplexities, shares of needles
            that were found; a bucket without a label is left out.
        labels: how many labels each source, bucket and length of needles had.
        seconds: wall time.
    """

    step: int
    metrics: dict[str, float]
    labels: dict[str, int]
    seconds: float
