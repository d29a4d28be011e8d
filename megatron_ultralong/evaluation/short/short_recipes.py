"""Which short-context tasks are asked, with how many shots, and which of their numbers counts, as data.

The paper (arXiv 2504.06214) names the benchmarks and shots: MMLU and MMLU-Pro 5-shot, MATH 0-shot exact match, GSM8K
8-shot exact match, HumanEval 0-shot pass@1. It does not name lm-evaluation-harness's variants; these are our choice:
GSM8K with the eight worked examples of Wei et al. 2022 (`gsm8k_cot`), MATH by math_verify, which reads boxed answers.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

Name = Literal["paper"]


@dataclasses.dataclass(frozen=True)
class ShortTask:
    """One benchmark.

    Attributes:
        label: how papers call it.
        task: lm-evaluation-harness's name.
        metric: the number that counts, "metric,filter" as it writes it.
        shots: examples before the question.
        chat_task: its name for models that are asked as chats, where it is another; "" for the same.
        runs_code: it executes what the model writes.
    """

    label: str
    task: str
    metric: str
    shots: int
    chat_task: str = ""
    runs_code: bool = False


RECIPES: dict[Name, tuple[ShortTask, ...]] = {
    "paper": (
        ShortTask("MMLU", "mmlu", "acc,none", 5),
        ShortTask("MMLU-Pro", "mmlu_pro", "exact_match,custom-extract", 5),
        ShortTask("MATH", "minerva_math", "math_verify,none", 0),
        ShortTask("GSM8K", "gsm8k_cot", "exact_match,strict-match", 8),
        ShortTask("HumanEval", "humaneval", "pass@1,create_test", 0, "humaneval_instruct", runs_code=True),
    )
}
