"""The longest sequence of Llama-3.1-8B by GPUs and their memory, beside peers', and what each option adds to it.

    python tests/benchmarks/longest.py

Two tables in Markdown, those of docs/training.md. All by planning/memory.py: nothing runs.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_ultralong.config.sections import DataConfig, ModelConfig, OptimizerConfig, RunConfig, TrainConfig
from megatron_ultralong.files import read_json
from megatron_ultralong.planning.memory import PlannedMemory
from megatron_ultralong.planning.search.layouts import Saving, head_group_counts, layouts, name_of, problem, with_saving
from megatron_ultralong.planning.search.ranking import MARGIN, memories
from megatron_ultralong.rope.recipes import LONGEST

MODEL: dict[str, Any] = read_json(Path(__file__).parents[2] / "examples/models/llama3.1_8b.json", "the model", "")
STEP = 32_768
"""Tokens between two lengths that are tried."""
CARDS = {"80 GB": 80e9, "141 GB": 141e9}
GPUS = (1, 2, 4, 8, 16)
A_NODE = 8
"""GPUs of one."""
HOSTS = (1e12, 2e12)
"""Bytes of a node's host memory for which lengths are given."""
PEERS = {
    ("80 GB", 1): "ALST 500K",
    ("80 GB", 8): "ALST 3.7M, UPipe 5M, TRL 1M (Qwen3-8B)",
    ("80 GB", 16): "ALST 8M, UPipe's scripts 8M, TRL 2M (Qwen3-8B)",
    ("141 GB", 1): "ALST 1.2M",
}
"""As they publish them: ALST (arXiv 2506.13996), UPipe (arXiv 2602.21196), TRL (2026)."""


@dataclasses.dataclass(frozen=True)
class Found:
    """The longest that some layout holds."""

    length: int
    config: RunConfig
    memory: PlannedMemory

    def host(self, gpus: int) -> float:
        """Bytes of a node's host memory."""
        return self.memory.host * min(gpus, A_NODE)


def run(length: int, fp32_gradients: bool) -> RunConfig:
    """One sample a step; its layout is yet to be found."""
    return RunConfig(
        model=ModelConfig(hf=Path("models/Llama-3.1-8B-Instruct")),
        data=DataConfig(sources=(), sequence_length=length),
        train=TrainConfig(steps=1, global_batch_size=1, grad_reduce_in_fp32=fp32_gradients),
        optimizer=OptimizerConfig(learning_rate=3e-5),
    )


def longest(gpus: int, card: float, saving: Saving, fp32_gradients: bool, host: float = float("inf")) -> Found | None:
    """Over all layouts of so many GPUs that work on one sample; `saving.groups` other than 0: any number of groups.

    Args:
        gpus: of the job.
        card: bytes of one; a plan leaves MARGIN of it free, as tools/plan_run.py does.
        saving: what else is done.
        fp32_gradients: train.grad_reduce_in_fp32.
        host: bytes of a node's host memory.
    """
    best: Found | None = None
    for layout in layouts(run(LONGEST, fp32_gradients), MODEL, gpus):
        parallel = layout.parallel
        if parallel.tensor * parallel.context * parallel.pipeline != gpus:
            continue
        for config in _grouped(layout, saving):
            if problem(config, MODEL, gpus) is None:
                best = _longer(config, gpus, card * (1 - MARGIN), host, best)
    return best


def _grouped(layout: RunConfig, saving: Saving) -> Iterator[RunConfig]:
    if not saving.groups:
        yield with_saving(layout, saving)
        return
    for groups in head_group_counts(layout, MODEL):
        yield with_saving(layout, dataclasses.replace(saving, groups=groups))


def at(config: RunConfig, length: int, gpus: int) -> PlannedMemory:
    """Of the stage that needs most, with another length."""
    data = dataclasses.replace(config.data, sequence_length=length)
    one = dataclasses.replace(config, data=data)
    return max(memories(one, MODEL, gpus, True), key=lambda stage: stage.needed)


def _longer(config: RunConfig, gpus: int, room: float, host: float, best: Found | None) -> Found | None:
    """What the layout holds, if that is more than `best`."""

    def fitting(multiple: int) -> Found | None:
        found = Found(multiple * STEP, config, at(config, multiple * STEP, gpus))
        return found if found.memory.needed <= room and found.host(gpus) <= host else None

    low = best.length // STEP if best else 0
    found = fitting(low + 1) if low < LONGEST // STEP else None
    if found is None:
        return best
    low, high = low + 1, LONGEST // STEP + 1
    while high - low > 1:
        middle = (low + high) // 2
        longer = fitting(middle)
        if longer is None:
            high = middle
        else:
            low, found = middle, longer
    return found


ALL = Saving("full", True, True, groups=1, host_optimizer=True)


def machines() -> Iterator[str]:
    """The longest by machine."""
    yield "| GPUs | each | tokens | layout | GB a GPU | host GB | gradients in fp32 | 2 TB a node | 1 TB | peers |"
    yield "|---" * 10 + "|"
    for card, size in CARDS.items():
        for gpus in GPUS:
            found = longest(gpus, size, ALL, False)
            others = [longest(gpus, size, ALL, True)]
            others += [longest(gpus, size, ALL, False, host) for host in reversed(HOSTS)]
            assert found is not None
            lengths = " | ".join(tokens(other) for other in others)
            row = f"{_layout(found.config)} | {found.memory.needed / 1e9:.1f} | {found.host(gpus) / 1e9:,.0f}"
            yield f"| {gpus} | {card} | {tokens(found)} | {row} | {lengths} | {PEERS.get((card, gpus), '')} |"


def ladder() -> Iterator[str]:
    """What each option adds, on one H200 and on 8 GPUs of 80 GB."""
    yield "| option | one H200 | 8 x 80 GB | layout there |"
    yield "|---" * 4 + "|"
    rungs = {
        "plain: sequence parallelism, ring, distributed optimizer, loss in chunks": Saving("none", False, False),
        '+ `recompute = "full"`': Saving("full", False, False),
        "+ `offload = true`": Saving("full", True, False),
        "+ `mlp_chunk = 4096`": Saving("full", True, True),
        "+ `optimizer.offload_fraction = 1`": Saving("full", True, True, host_optimizer=True),
        "+ `head_groups`": ALL,
        "+ `grad_reduce_in_fp32 = false`": ALL,
    }
    for place, (name, saving) in enumerate(rungs.items()):
        fp32 = place < len(rungs) - 1
        alone = longest(1, CARDS["141 GB"], dataclasses.replace(saving, host_optimizer=True), fp32)
        node = longest(8, CARDS["80 GB"], saving, fp32)
        yield f"| {name} | {tokens(alone)} | {tokens(node)} | {_layout(node.config) if node else ''} |"


def tokens(found: Found | None) -> str:
    """In K or M of 2^10 and 2^20."""
    if found is None:
        return "none"
    return f"{found.length / 2**20:.2f}M" if found.length >= 2**20 else f"{found.length / 2**10:.0f}K"


def _layout(config: RunConfig) -> str:
    """Without what all of them share."""
    name = name_of(config).split(", ")[0].replace(" x PP 1", "")
    return name + (f", {config.parallel.head_groups} groups" if config.parallel.head_groups else "")


def main() -> None:
    """Print both."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print("\n".join([*machines(), "", *ladder()]))


if __name__ == "__main__":
    main()
