"""Steps of real runs on this machine against the time planning/step_time.py predicts from its calibration.

    python tests/benchmarks/bench_predicted_times.py [--cases NAME ...] [--rounds 3] [--seconds 12] [--clock wall|cpu]

Each case is a run of this project on one or two processes, a thread each: a tiny model and one of 100M parameters, over
lengths, layouts, recomputation and tiles. In the same processes a calibration as tools/calibrate.py makes it goes
before each few steps, so that what else the machine does counts in both. The prediction starts from the median of the
calibrations; the step is the median of all. With --clock cpu seconds are those that the process computed, for a machine
that others use; only cases of one process mean anything then.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[2] / "tools")]

from megatron_ultralong.config.reading import load_config  # noqa: E402
from megatron_ultralong.planning.hardware_profile import HardwareProfile  # noqa: E402
from megatron_ultralong.planning.step_time import StepTime, step_time  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        model: of `bench_step.SHAPES`.
        ranks: processes.
        length: tokens a sample.
        options: further words of the command line.
    """

    model: str
    ranks: int
    length: int
    options: str = ""


CASES = {
    "tiny 512": Case("tiny", 1, 512),
    "tiny 2K": Case("tiny", 1, 2048),
    "tiny 8K": Case("tiny", 1, 8192),
    "tiny 2K full": Case("tiny", 1, 2048, "--parallel.recompute full"),
    "tiny 2K selective": Case("tiny", 1, 2048, "--parallel.recompute selective"),
    "tiny 4K tiles": Case("tiny", 1, 4096, "--parallel.mlp_chunk 512"),
    "tiny 4K cp2": Case("tiny", 2, 4096, "--parallel.context 2"),
    "tiny 4K ulysses2": Case("tiny", 2, 4096, "--parallel.context 2 --parallel.ulysses 2"),
    "tiny 4K tp2": Case("tiny", 2, 4096, "--parallel.tensor 2 --parallel.sequence_parallel true"),
    "tiny 2K pp2": Case("tiny", 2, 2048, "--parallel.pipeline 2 --train.global_batch_size 4"),
    "tiny 2K dp2": Case("tiny", 2, 2048, "--train.global_batch_size 2 --parallel.distributed_optimizer true"),
    "100m 512": Case("100m", 1, 512),
    "100m 2K": Case("100m", 1, 2048),
    "100m 2K full": Case("100m", 1, 2048, "--parallel.recompute full"),
    "100m 2K cp2": Case("100m", 2, 2048, "--parallel.context 2"),
    "100m 2K tp2": Case("100m", 2, 2048, "--parallel.tensor 2"),
    "100m 1K pp2": Case("100m", 2, 1024, "--parallel.pipeline 2 --train.global_batch_size 2"),
    "100m 512 dp2": Case("100m", 2, 512, "--train.global_batch_size 2 --parallel.distributed_optimizer true"),
}

RUN = """
[model]
hf = "{root}/hf"
init = "random"
[rope]
kind = "linear"
original_length = 2048
target_length = 16384
[data]
sequence_length = {length}
sources = [{{ index = "{root}/packed_{length}" }}]
[train]
steps = 1000
global_batch_size = 1
precision = "fp32"
[parallel]
device = "cpu"
"""


def workspace(root: Path, model: str, lengths: list[int]) -> None:
    """A model's folder, and samples of each length."""
    from megatron_ultralong.data.corpus.corpus import open_corpus
    from megatron_ultralong.data.packing.index import PackOptions, write_packed_index
    from tests.benchmarks.bench_step import folder

    folder(root, model)
    for length in lengths:
        write_packed_index(open_corpus(root / "corpus"), root / f"packed_{length}", PackOptions(sequence_length=length))
        (root / f"run_{length}.toml").write_text(RUN.format(root=root, length=length))


def worker(config: list[str], rounds: int, seconds: float, steps: int, clock: str) -> None:
    """One rank: calibrations and steps in turn; rank 0 prints them as JSON."""
    import _gpu_timing
    import torch
    import torch.distributed as dist
    from _calibrate_measure import CPU, measure

    from megatron_ultralong.engine import groups
    from megatron_ultralong.training.setup import prepare
    from megatron_ultralong.training.step import train_step

    logging.disable()
    now = time.perf_counter if clock == "wall" else time.thread_time
    _gpu_timing.clock = now
    run = prepare(load_config(Path(config[0]), config[1:]))
    train_step(run, 0)
    profiles, times, numbers = [], [], itertools.count(1)
    for _ in range(rounds):
        profiles.append(dataclasses.asdict(measure(run.device, torch.float32, CPU, seconds)))
        train_step(run, next(numbers))  # what the calibration put out of the caches
        for _ in range(steps):
            dist.barrier()
            begun = now()
            train_step(run, next(numbers))
            times.append(now() - begun)
    if dist.get_rank() == 0:
        print(json.dumps({"profiles": profiles, "times": times}))
    groups.finalize()


def median_profile(found: list[dict[str, Any]], folder: Path) -> HardwareProfile:
    """Each figure's median."""

    def middle(values: list[Any]) -> Any:
        first = values[0]
        if isinstance(first, dict):
            return {key: middle([value[key] for value in values]) for key in first}
        if isinstance(first, (list, tuple)):
            return [middle(list(column)) for column in zip(*values, strict=True)]
        return statistics.median(values) if isinstance(first, float) else first

    path = folder / "profile.json"
    path.write_text(json.dumps({"format": 2, **middle(found), "like": None}))
    return HardwareProfile.read(path)


def measure_case(case: Case, root: Path, options: argparse.Namespace) -> tuple[float, StepTime]:
    """Seconds of a step, measured and predicted."""
    words = [str(root / f"run_{case.length}.toml"), *case.options.split()]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(case.ranks)] if case.ranks > 1 else []
    command = [sys.executable, *launcher, __file__, "--worker", *map(str, (options.rounds, options.seconds))]
    command += [str(options.steps), options.clock, "--", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    environment["PYTHONPATH"] = f"{Path(__file__).parents[2]}:{os.environ.get('PYTHONPATH', '')}"
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"profiles"')))
    profile = median_profile(found["profiles"], root)
    config = load_config(Path(words[0]), words[1:])
    hf_config = json.loads((root / "hf" / "config.json").read_text())
    return statistics.median(found["times"]), step_time(config, hf_config, case.ranks, profile)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--clock", default="wall", choices=("wall", "cpu"))
    options = parser.parse_args()
    errors = []
    with tempfile.TemporaryDirectory() as temporary:
        for model in dict.fromkeys(CASES[name].model for name in options.cases):
            (Path(temporary) / model).mkdir()
            lengths = sorted({CASES[name].length for name in options.cases if CASES[name].model == model})
            workspace(Path(temporary) / model, model, lengths)
        print(
            "| run | processes | measured | predicted | error | largest parts of the prediction |\n" + "|---" * 6 + "|"
        )
        for name in options.cases:
            case = CASES[name]
            seconds, predicted = measure_case(case, Path(temporary) / case.model, options)
            errors.append(predicted.total / seconds - 1)
            parts = sorted(predicted.parts.items(), key=lambda part: -part[1])[:5]
            shown = ", ".join(f"{part} {1000 * value:.0f} ms" for part, value in parts)
            print(
                f"| {name} | {case.ranks} | {1000 * seconds:.0f} ms | {1000 * predicted.total:.0f} ms | "
                f"{errors[-1]:+.0%} | {shown} |",
                flush=True,
            )
    sizes = sorted(map(abs, errors))
    print(f"\nmedian error {statistics.median(sizes):.0%}, worst {sizes[-1]:.0%}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[7:], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
    else:
        main()
