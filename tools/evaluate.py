"""Evaluate models at any length: make samples of benchmarks, ask a model, score predictions, put runs side by side.

    python tools/evaluate.py make --tokenizer MODEL --task needles --lengths 131072 --haystack books --output prompts
    python tools/evaluate.py run --model MODEL --samples-file prompts/needles/*.jsonl --output runs/MODEL
    python tools/evaluate.py compare runs/BASE runs/MODEL --output report

docs/evaluation.md says what each number means. Every command explains its flags by --help.
"""

from __future__ import annotations

from megatron_ultralong.cli import run_commands
from megatron_ultralong.evaluation.commands.compare_runs import compare_runs
from megatron_ultralong.evaluation.commands.make_samples import make
from megatron_ultralong.evaluation.commands.run_short_tasks import short
from megatron_ultralong.evaluation.commands.run_tasks import run
from megatron_ultralong.evaluation.commands.score_predictions import score

COMMANDS = {
    "make": make,
    "run": run,
    "short": short,
    "score": score,
    "compare": compare_runs,
}

if __name__ == "__main__":
    run_commands(COMMANDS)
