"""InfiniteBench's prompts: our own wording, or the templates of src/prompt.py in a clone, with what their places take.

A clone's `yarn_mistral_templates` serve the base form, being texts to continue, and its `gpt4_templates` the chat form.
"""

from __future__ import annotations

import re
from pathlib import Path

from megatron_ultralong.evaluation.benchmarks.benchmark_rows import Row
from megatron_ultralong.evaluation.benchmarks.official_clone import entry
from megatron_ultralong.evaluation.benchmarks.prompt_templates import Template
from megatron_ultralong.evaluation.samples import Form

OFFICIAL: dict[Form, str] = {"base": "yarn_mistral_templates", "chat": "gpt4_templates"}

_CHOICES = "A. {OPTION_A}\nB. {OPTION_B}\nC. {OPTION_C}\nD. {OPTION_D}"


def _pair(before: str, after: str, lead: str, ask: str) -> Template:
    """Both forms around the long text: in base form the answer begins with `lead`, in chat form `ask` says how."""
    middle = f"{before}\n\n{{context}}\n\n{after}"
    return Template(base=middle + "\n", lead=lead, chat=f"{middle}\n{ask}" if ask else middle)


OWN_TEMPLATES: dict[str, Template] = {
    "passkey": _pair(
        "A pass key stands somewhere in this text, which is otherwise of no interest.",
        "{input}",
        "The pass key is",
        "Reply with the digits alone.",
    ),
    "number_string": _pair(
        "A sequence of digits to be remembered stands somewhere in this text, which is otherwise of no interest.",
        "{input}",
        "The sequence of digits is",
        "Reply with the digits alone.",
    ),
    "kv_retrieval": _pair("Look up a key in this JSON object.", "{input}", "", "Reply with the value alone."),
    "longbook_sum_eng": _pair("Here is a book.", "Summarize the book.", "Summary:", ""),
    "longbook_choice_eng": _pair(
        "Here is a book.",
        "Question about the book: {question}\n" + _CHOICES,
        "The letter of the right choice is",
        "Reply with the letter of the right choice alone.",
    ),
    "longbook_qa_eng": _pair(
        "Here is a book.", "Question about the book: {question}", "Short answer:", "Reply in as few words as possible."
    ),
    "longbook_qa_chn": _pair(
        "以下是一本书。", "关于这本书的问题：{question}", "简短的回答：", "请用尽量简短的话回答。"
    ),
    "longdialogue_qa_eng": _pair(
        "In this script the name of one character was replaced by $$MASK$$ in one place.",
        "Whose name was it?",
        "The name was",
        "Reply with the name alone, as it stands before the character's lines.",
    ),
    "math_find": _pair("Here is a list of numbers.", "{input}", "", ""),
    "math_calc": _pair(
        "Work out an expression from left to right and write down the value after each operation. "
        "For 2 + 5 - 3 that is [2, 7, 4].",
        "What are the values?",
        "Values: [",
        "Reply with the list alone.",
    ),
    "code_run": _pair(
        "Here are Python functions that call each other.",
        "What does {func_call} return?",
        "{func_call} returns",
        "Reply with the number alone.",
    ),
    "code_debug": _pair(
        "In this code one function has an obvious error that was put there on purpose.",
        "Which function is it?\n" + _CHOICES,
        "The correct option is:",
        "Reply with the letter of the function, a full stop and its name.",
    ),
}
"""By task."""


def official_template(clone: Path, form: Form, task: str) -> tuple[Template, str]:
    """A clone's template, and where it stands.

    Raises:
        UserError: the clone has none.
    """
    path = Path(clone) / "src" / "prompt.py"
    text = entry(path, OFFICIAL[form], task, str)
    return Template(base=text, chat=text), f"src/prompt.py, {OFFICIAL[form]}"


def fields(row: Row, task: str) -> dict[str, str]:
    """What the places of a task's templates take, ours and theirs.

    Raises:
        UserError: the row lacks a field, or its question is not of the task's kind.
    """
    found = {name: row.text(name) for name in ("context", "input")}
    found["question"] = found["input"]
    if task in ("longbook_choice_eng", "code_debug"):
        options = row.texts("options")
        if len(options) != 4:
            row.refuse("options", "a list of four")
        found |= {f"OPTION_{letter}": option for letter, option in zip("ABCD", options, strict=True)}
    if task == "code_run":
        call = re.search(r"func_[0-9]+\(-?[0-9]+\)", found["input"])
        if call is None:
            row.refuse("input", "a question about a call such as func_1(2)")
        else:
            found |= {"func_call": call.group(), "func": call.group().partition("(")[0]}
    if task == "math_find":
        target = re.search(r"The .+ of", found["input"])
        if target is None:
            row.refuse("input", "a question such as: The largest number of the list is")
        else:
            found["prefix"] = f"What is {target.group().lower()[:-3]} in the following list?"
    return found
