"""What a whole training step launches on a GPU, and where it waits for it: counted on tensors without values."""

from __future__ import annotations

import pytest

from megatron_ultralong.rehearsal import operators
from tests.benchmarks.count_operators import by_part, counted

WAITS = {
    "finalize_model_grads.py: finalize_model_grads": 1,
    "clip_grads.py: get_grad_norm_fp32": 1,
    "step.py: _reduce": 4,  # four numbers of one tensor, which is copied once
}
"""docs/training.md says why."""


@pytest.mark.parametrize("document", [0, 100_000], ids=["one document", "documents"])
def test_a_step_waits_for_the_gpu_where_the_docs_say_and_nowhere_else(document: int) -> None:
    found = counted(1, "none", 1_048_576, document)
    assert found.synchronisations == WAITS


@pytest.mark.parametrize("recompute", ["none", "selective"])
def test_a_layer_launches_the_same_at_any_length(recompute: str) -> None:
    layers = []
    for length in (131_072, 4_194_304):
        one, two = (counted(layers, recompute, length) for layers in (1, 2))
        layers.append(by_part(two) - by_part(one))
    assert layers[0] == layers[1]
    assert layers[0]["attention"] <= 2 * 16 * 16  # forward and backward of 16 blocks
    assert layers[0].total() - layers[0]["attention"] <= 100


def test_the_optimizer_launches_a_few_kernels_and_a_cast_a_weight_of_its_share() -> None:
    """A rank's share of the two layers' main weights, DP x CP 32, lies in three weights."""
    counts = counted(2, "none", 131_072).operators["optimizer"]
    assert counts["copy_"] == 3 and operators.own(counts) <= 10
    assert counts["_fused_adamw_"] == 1 and counts["_foreach_norm"] == 1
