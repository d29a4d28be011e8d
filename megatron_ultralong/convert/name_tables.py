"""The name tables as Markdown: `python -m megatron_ultralong.convert.name_tables docs/conversion.md`.

Rewrites what lies between the two marks of the page, so that it says what the code does; a test compares them.
"""

from __future__ import annotations

import sys
from pathlib import Path

from megatron_ultralong.families.rules import Rule
from megatron_ultralong.families.tables import FAMILIES, LLAMA
from megatron_ultralong.files import atomic_file

BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"


def tables() -> str:
    """A table of Llama's rules, and for each other family of what it has otherwise."""
    parts = []
    for family, rules in FAMILIES.items():
        own = rules if rules == LLAMA and family == "LlamaForCausalLM" else [r for r in rules if r not in LLAMA]
        parts.append(f"### {family}\n")
        if own is not rules and not own:
            parts.append("As LlamaForCausalLM.\n")
            continue
        if own is not rules:
            keys = {rule.megatron for rule in LLAMA}
            replaced = any(rule.megatron in keys for rule in own)
            parts.append(f"As LlamaForCausalLM, {'but' if replaced else 'and'}:\n")
        parts.append("| megatron-core | kind | Hugging Face | rows x columns |\n|---|---|---|---|")
        parts += [_row(rule) for rule in own]
        parts.append("")
    return "\n".join(parts)


def _row(rule: Rule) -> str:
    names = "<br>".join(f"`{name}`" for name in rule.hf)
    axes = "<br>".join(" x ".join(text.split()) for text in rule.axes)
    return f"| `{rule.megatron}` | {type(rule).__name__} | {names} | {axes} |"


def rendered(page: str) -> str:
    """The page with today's tables between its marks."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{tables()}\n{END}{after}"


if __name__ == "__main__":
    target = Path(sys.argv[1])
    text = rendered(target.read_text(encoding="utf-8"))
    with atomic_file(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
