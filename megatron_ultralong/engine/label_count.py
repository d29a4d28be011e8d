"""The labels of a step over the whole job, counted in 64 bits.

megatron-core 0.16.1 adds one rank's up in int32 and reduces that over data- and context-parallel ranks: from 2^31 on
(512 samples of 4M tokens) the sum is negative, and its `if num_tokens > 0` leaves the gradients unscaled.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from megatron_ultralong.engine import mcore


def finalize_model_grads(model: list[Any], num_tokens: Tensor | None = None, **rest: Any) -> None:
    """megatron-core's, with this rank's count of labels widened before it is reduced."""
    mcore.finalize_model_grads(model, None if num_tokens is None else num_tokens.long(), **rest)
