"""Operators that a layer and a step launch on a GPU's path: what a process has to do for its device.

Counted with tests/benchmarks/count_operators.py on rings of 1 to 16 (`pytest tests/planning/test_launches.py` counts
again), without views and memory; kernels of attention and messages are among them here. A layer of a CPU launches more
(norms, SwiGLU in parts), each of which costs it less beside the work.
"""

from __future__ import annotations

import dataclasses

from megatron_ultralong.config.sections import ParallelConfig

STEP = 56
"""Of a step beside its layers: embedding, optimizer, zeroing, counting, scaling, the last norm, the loss's own."""
CHUNK = 31
"""Of each chunk of the loss."""


@dataclasses.dataclass(frozen=True)
class Launches:
    """Operators of one layer and one microbatch.

    Attributes:
        forward: of it.
        backward: of it.
        again: of what backward computes again.
    """

    forward: int
    backward: int
    again: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.forward + self.backward + self.again


def launches_of_a_layer(parallel: ParallelConfig) -> Launches:
    """By the ring's size r and the recomputation.

    A layer without a ring has 11 forward and 25 backward, and a kernel of attention in each; a block more of the ring 6
    and 4, a kernel in each, and 2 messages forward, 4 backward.
    """
    further = parallel.context // parallel.ulysses - 1
    ring = int(further > 0)
    forward = 12 + 6 * ring + 9 * further
    backward = 26 + 9 * ring + 9 * further
    again = {"none": 0, "selective": 16, "full": forward - 2 * ring}[parallel.recompute]
    messages = 6 if parallel.tensor > 1 else 0
    return Launches(forward + messages, backward + messages, again + (messages if again else 0))
