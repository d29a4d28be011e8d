"""Text to hide needles in, drawn by seed: paragraphs, blank lines, and lines as of code, of many lengths."""

from __future__ import annotations

import random
import textwrap

from megatron_ultralong.evaluation.benchmarks.words import COMMON


def drawn_text(seed: int, paragraphs: int = 40) -> str:
    """Some 400 characters a paragraph; every third is code."""
    rng = random.Random(seed)
    blocks = [_code(rng) if number % 3 == 2 else _prose(rng) for number in range(paragraphs)]
    return "\n\n".join(blocks) + "\n"


def _prose(rng: random.Random) -> str:
    """Sentences, in lines of up to 76 characters."""
    lines = []
    for _ in range(rng.randint(2, 8)):
        sentences = []
        for _ in range(rng.randint(1, 2)):
            words = rng.choices(COMMON, k=rng.randint(1, 12))
            end = rng.choice([".", ".", ".", "!", "?", ";", ": 1,024 of 3.5 %", " (in part)."])
            sentences.append(rng.choice(["The ", "It's a ", ""]) + rng.choice([", ", " "]).join(words) + end)
        lines.append(" ".join(sentences))
    return "\n".join(textwrap.fill(line, 76) for line in lines)


def _code(rng: random.Random) -> str:
    """A function, its lines indented."""
    names = rng.sample(COMMON, 4)
    lines = [f"def {names[0]}_{names[1]}({names[2]}, *, {names[3]}={rng.randint(0, 10 ** rng.randint(1, 5))}):"]
    lines.append(f"    # {' '.join(rng.choices(COMMON, k=rng.randint(2, 14)))}")
    for _ in range(rng.randint(1, 7)):
        left, right = rng.sample(names, 2)
        statements = [f"{left} = {right}[{rng.randint(0, 9)}:]", f"if {left} != {right}:", f"return {left}({right!r})"]
        lines.append(" " * 4 * rng.randint(1, 3) + rng.choice([*statements, f"{left} += 0x{rng.randint(16, 999):x}"]))
    return "\n".join(lines)
