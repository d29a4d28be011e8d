"""The rotary module: megatron-core's own table where it has one, fp64 where fp32 no longer suffices."""

from __future__ import annotations

import math

import numpy as np
import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding

from megatron_ultralong.context_parallel import zigzag
from megatron_ultralong.model.rope import RopeScaling
from megatron_ultralong.model.rotary import Rotary

PLAIN = RopeScaling(base=10000.0, original_length=64)


def test_equals_megatron_cores_table() -> None:
    theirs = RotaryEmbedding(16, rotary_percent=1.0, rotary_base=10000, use_cpu_initialization=True)
    ours = Rotary(PLAIN, 16)
    table = torch.outer(torch.arange(64).float(), theirs.inv_freq)
    torch.testing.assert_close(
        ours(torch.arange(64)[None])[:, 0, 0], torch.cat((table, table), -1), rtol=1e-6, atol=1e-6
    )


def test_holds_only_the_positions_of_this_rank() -> None:
    whole = Rotary(PLAIN, 16)(torch.arange(64)[None])
    for rank in range(2):
        held = torch.cat([torch.arange(*span) for span in zigzag.spans(64, rank, 2)])
        share = Rotary(PLAIN, 16)(held[None])
        assert share.shape == (32, 1, 1, 16)
        assert torch.equal(share, whole[held])


def test_rows_of_a_batch_have_positions_of_their_own() -> None:
    angles = Rotary(PLAIN, 8)(torch.tensor([[0, 1, 2], [5, 0, 1]]))
    assert angles.shape == (3, 2, 1, 8)
    assert torch.equal(angles[1, 0], angles[2, 1])


def test_fp64_angles_are_exact_near_four_million() -> None:
    rope = RopeScaling(base=5e5, kind="yarn", factor=512, original_length=8192)
    positions = torch.arange(4_194_000, 4_194_304)
    exact = np.cos(positions.numpy()[:, None] * rope.inverse_frequencies(128)[None, :])
    errors = {}
    for angles in ("fp32", "fp64"):
        ours = Rotary(rope, 128, angles)(positions[None])[:, 0, 0, :64].cos().double().numpy()
        errors[angles] = np.abs(ours - exact).max()
    assert errors["fp64"] < 1e-6
    assert 1e-3 < errors["fp32"] < 0.2  # an ulp near 4M radians is 0.25
    assert math.isclose(rope.length, 4_194_304)
