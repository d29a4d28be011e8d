"""Published runs of other systems against what planning/ says of them: step times, rates and longest sequences.

    python tests/benchmarks/retrodict.py [--explain]

Each row has its source. The layouts are the published ones, as far as this project has their like: FSDP is taken as
the distributed optimizer, and bf16 as the precision throughout, where some computed linear layers in FP8. Nothing is
fitted to these figures: the rates are those of planning/profiles. Every error above 25 % has its reason below the
table; a second error is with FlashAttention-2's rates, where the run may have had that kernel.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from megatron_ultralong.config.reading import load_config
from megatron_ultralong.config.sections import (
    DataConfig,
    DataSource,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
)
from megatron_ultralong.planning.flops import ModelShape
from megatron_ultralong.planning.hardware_profile import AttentionRate, HardwareProfile, find
from megatron_ultralong.planning.search.ranking import longest
from megatron_ultralong.planning.step_time import StepTime, step_time

K, M = 1024, 1024**2
_ROOT = Path(__file__).parents[2]


def model(layers: int, ffn: int, kv_heads: int, vocabulary: int, **more: Any) -> dict[str, Any]:
    """A decoder of 4,096 channels and 32 heads of 128."""
    return {
        "num_hidden_layers": layers,
        "hidden_size": 4096,
        "intermediate_size": ffn,
        "num_attention_heads": 32,
        "num_key_value_heads": kv_heads,
        "head_dim": 128,
        "vocab_size": vocabulary,
        "model_type": "llama",
        **more,
    }


LLAMA3_8B, LLAMA2_7B = model(32, 14336, 8, 128256), model(32, 11008, 32, 32000)
QWEN3_8B = model(36, 12288, 8, 151936, model_type="qwen3")


@dataclasses.dataclass(frozen=True)
class Point:
    """One published figure.

    Attributes:
        system: whose.
        what: of which run.
        published: the figure.
        unit: of it.
        predicted: ours.
        source: where it is published.
        why: reason of an error above 25 %.
        flash2: predicted with FlashAttention-2 for the kernel, where the run may have used it.
    """

    system: str
    what: str
    published: float
    unit: str
    predicted: float
    source: str
    why: str = ""
    flash2: float | None = None

    @property
    def error(self) -> float:
        """Of the prediction, relative."""
        return self.predicted / self.published - 1


def run(length: int, batch: int, offload: float = 0.0, **parallel: Any) -> RunConfig:
    """A configuration that no file describes."""
    options = {"sequence_parallel": parallel.get("tensor", 1) > 1, "distributed_optimizer": True, **parallel}
    return RunConfig(
        model=ModelConfig(hf=Path("model")),
        data=DataConfig(sources=(DataSource(index=Path("packed")),), sequence_length=length),
        parallel=ParallelConfig(**options),
        train=TrainConfig(steps=1, global_batch_size=batch),
        optimizer=OptimizerConfig(offload_fraction=offload),
    )


FLASH2 = ((512, 191, 214), (1024, 260, 260), (2048, 298, 291), (4096, 319, 310), (8192, 333, 318), (16384, 335, 322))
"""TFLOPS forward and backward on H100 by length, arXiv 2407.08608, figures 5 and 6."""


def with_flash2(profile: HardwareProfile) -> HardwareProfile:
    """The same card under that kernel."""
    rates = tuple(AttentionRate(n, 1e12 * forward, 1e12 * backward) for n, forward, backward in FLASH2)
    return dataclasses.replace(profile, attention=rates)


def timed(hf_config: dict[str, Any], gpus: int, hardware: str, config: RunConfig, flash2: bool = False) -> StepTime:
    """A step of it."""
    profile = find(hardware)
    return step_time(config, hf_config, gpus, with_flash2(profile) if flash2 else profile)


def ultralong() -> Iterator[Point]:
    """Hours of continued pretraining on 256 H100."""
    why = (
        "hours of the job as notes on the paper round them, with start, data and saving, and its recomputation, batch "
        "and kernels unknown; ours are steps alone, with selective recomputation"
    )
    for name, hours in (("1m", 5), ("2m", 6), ("4m", 13)):
        config = load_config(_ROOT / f"examples/llama3.1_8b_{name}/extend.toml")
        found, slower = (
            timed(LLAMA3_8B, 256, "h100", config, kernel).total * config.train.steps / 3600 for kernel in (False, True)
        )
        yield Point("UltraLong-8B", f"{name.upper()}, 256 H100", hours, "h", found, "arXiv 2504.06214", why, slower)


def nemo_tflops(hf_config: dict[str, Any], config: RunConfig, seconds: float, gpus: int) -> float:
    """In NeMo's count of then, which takes all pairs of attention: nemo/utils/flops_formulas.py."""
    shape, tokens = ModelShape.from_hf(hf_config), config.train.global_batch_size * config.data.sequence_length
    linear = shape.layers * shape.layer_weights + shape.hidden * shape.vocabulary
    pairs = 12 * config.data.sequence_length * shape.hidden * shape.layers
    return tokens * (6 * linear + pairs) / seconds / gpus / 1e12


def nemo() -> Iterator[Point]:
    """FP8 on H100 and B200, by length."""
    fp8 = "its linear layers are in FP8, ours in bf16: the shorter the sequence, the more of a step they are"
    source = "NeMo, docs/source/performance/performance_long_sequence.md"
    rows = ((16, 16, 2, 8, 1, 660), (64, 64, 4, 8, 2, 574), (128, 128, 4, 8, 4, 555), (256, 256, 4, 8, 8, 549))
    for length, gpus, tensor, replicas, context, tflops in (
        *rows,
        (512, 512, 8, 4, 16, 549),
        (1024, 1024, 8, 4, 32, 536),
    ):
        config = run(length * K, 8 * replicas, tensor=tensor, context=context)
        found, slower = (
            nemo_tflops(LLAMA2_7B, config, timed(LLAMA2_7B, gpus, "h100", config, kernel).total, gpus)
            for kernel in (False, True)
        )
        what = f"Llama-2-7B, {length}K, {gpus} H100"
        older = (
            "its kernels are of March 2024, before FlashAttention-3 and the cuDNN measured beside it: with "
            "FlashAttention-2's rates the error is the second figure; ours counts no waiting for the slowest rank"
        )
        yield Point("NeMo, FP8", what, tflops, "TFLOPS", found, source, older, slower)
    rows = ((8, 2, 1, 1, 2, 1671), (32, 8, 1, 2, 4, 1624), (128, 32, 2, 4, 4, 1588))
    for length, gpus, tensor, context, replicas, tflops in (
        *rows,
        (512, 128, 4, 8, 4, 1619),
        (1024, 256, 4, 16, 4, 1608),
    ):
        config = run(length * K, max(replicas, 4096 // length), tensor=tensor, context=context)
        found = nemo_tflops(LLAMA3_8B, config, timed(LLAMA3_8B, gpus, "b200", config).total, gpus)
        yield Point("NeMo, FP8", f"Llama-3-8B, {length}K, {gpus} B200", tflops, "TFLOPS", found, source, fp8)


def trl() -> Iterator[Point]:
    """FSDP with a ring, recomputation with offload."""
    why = "PyTorch's own context parallelism with FSDP; ours counts neither its gathers nor unhidden copies"
    for gpus, length, seconds in ((8, M, 364), (16, 2 * M, 696), (32, 4 * M, 1346)):
        config = run(length, 1, context=gpus, recompute="full", offload=True)  # type: ignore[arg-type]
        found = timed(QWEN3_8B, gpus, "h100", config).total
        yield Point("TRL", f"Qwen3-8B, {length // M}M, {gpus} H100", seconds, "s/step", found, "trl issue 6846", why)


def torchtitan() -> Iterator[Point]:
    """FSDP, CP, torch.compile and FP8 on 8 H100."""
    why = (
        "its H100 have a power limit of 500 W and 2.4 TB/s of memory, and its attention is PyTorch's own "
        "FlashAttention-2, with whose rates the error is the second figure; the rest is its FSDP, and messages of its "
        "first context parallelism that blocks do not hide"
    )
    for context, length, rate in ((1, 32, 3890), (2, 64, 2540), (4, 128, 1071), (8, 256, 548)):
        config = run(length * K, 8 // context, context=context, recompute="full")
        found, slower = (timed(LLAMA3_8B, 8, "h100", config, kernel).tokens_per_second / 8 for kernel in (False, True))
        source = "torchtitan, benchmarks/llama3_h100_202412_torchtitan.md"
        yield Point("torchtitan, FP8", f"8B, {length}K, 8 H100", rate, "tokens/s/GPU", found, source, why, slower)


def easycontext() -> Iterator[Point]:
    """Zig-zag ring with ZeRO-3 on 8 A100."""
    why = (
        "its steps have constant costs that ours have not, such as ZeRO-3's offload to the host: 128K takes 3.7 times "
        "as long as 64K, and 700K comes near"
    )
    for length, rate in ((64, 7816), (128, 4266), (512, 2133), (700, 1603)):
        config = run(length * K, 1, context=8, recompute="full")
        found = timed(LLAMA2_7B, 8, "a100-80g", config).tokens_per_second
        yield Point("EasyContext", f"7B, {length}K, 8 A100", rate, "tokens/s", found, "EasyContext, README", why)


def lengths() -> Iterator[Point]:
    """The longest sequence that fits; where Adam's state lies on the host there, it does here."""
    alst = (
        "ALST keeps weights on the host too, and gradients in bf16, where here one GPU holds 16 and 32 GB of them; and "
        "this is the length a plan would promise, with room left free, where theirs is the last that ran"
    )
    upipe = "UPipe attends with a few heads at a time and reuses their buffers; this project holds all of a rank's"
    source = "ALST, arXiv 2506.13996"
    rows = (("ALST", 1, "h200", 1.2, source, alst), ("ALST", 1, "h100", 0.5, source, alst))
    rows += (("ALST", 8, "h100", 3.7, source, alst), ("ALST", 16, "h100", 8.0, source, alst))
    rows += (("ALST", 32, "h100", 15.0, source, alst), ("UPipe", 8, "h100", 5.0, "arXiv 2602.21196", upipe))
    for system, gpus, hardware, published, where, why in rows:
        found = longest(lambda length: run(length, 1, offload=1.0), LLAMA3_8B, gpus, find(hardware))
        what = f"longest of Llama-3-8B on {gpus} {hardware.upper()}"
        yield Point(system, what, published, "M tokens", (found or 0) / 1e6, where, why)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    points = [*ultralong(), *nemo(), *trl(), *torchtitan(), *easycontext(), *lengths()]
    notes: dict[str, int] = {}
    print("| system | run | published | predicted | error | source |\n|---|---|---|---|---|---|")
    for point in points:
        note = ""
        if abs(point.error) > 0.25:
            note = f" [{notes.setdefault(point.why, len(notes) + 1)}]"
        if point.flash2 is not None:
            note = f", {point.flash2 / point.published - 1:+.0%}{note}"
        figures = f"{point.published:,.4g} {point.unit} | {point.predicted:,.4g}"
        print(f"| {point.system} | {point.what} | {figures} | {point.error:+.0%}{note} | {point.source} |")
    errors = sorted(abs(point.error) for point in points)
    print(f"\nmedian error {statistics.median(errors):.0%}, worst {errors[-1]:.0%}")
    for why, number in notes.items():
        print(f"[{number}] {why}.")


if __name__ == "__main__":
    main()
