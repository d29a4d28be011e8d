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


def launches_of_a_layer(parallel: ParallelConfig, tiles: int = 1) -> Launches:
    """By the ring's size r and the recomputation; of a lean layer (head_groups) also by its tiles.

    A layer without a ring has 11 forward and 25 backward, and a kernel of attention in each; a block more of the ring 6
    and 4, a kernel in each, and 2 messages forward, 4 backward.
    """
    if parallel.head_groups:
        return _lean(parallel, tiles)
    further = parallel.context // parallel.ulysses - 1
    ring = int(further > 0)
    forward = 12 + 6 * ring + 9 * further
    backward = 26 + 9 * ring + 9 * further
    again = {"none": 0, "selective": 16, "full": forward - 2 * ring}[parallel.recompute]
    messages = 6 if parallel.tensor > 1 else 0
    return Launches(forward + messages, backward + messages, again + (messages if again else 0))


def _lean(parallel: ParallelConfig, tiles: int) -> Launches:
    """For each tile and group 8 forward and 14 backward, for each tile 8 and 28, for each group a call of attention."""
    groups, further = parallel.head_groups, parallel.context // parallel.ulysses - 1
    split = parallel.tensor > 1
    ring = int(further > 0)
    attend, back = 1 + 6 * ring + 9 * further, 4 + 9 * ring + 9 * further
    forward = 8 * tiles * groups + 8 * tiles + attend * groups
    backward = 14 * tiles * groups + 28 * tiles + back * groups + 18
    again = 8 * tiles * groups + attend * groups if parallel.recompute == "full" else 0
    if split:  # messages, and copies that lay a tile's ranks side by side
        forward += tiles * (3 * groups + 5)
        backward += tiles * (6 * groups + 12)
        again += tiles * 3 * groups if again else 0
    return Launches(forward, backward, again)
