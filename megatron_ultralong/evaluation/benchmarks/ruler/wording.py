"""How RULER's tasks are worded: our own words by default, or those of the user's clone of NVIDIA/RULER.

The definitions (what is hidden, asked and counted) are the same; only sentences differ. A template has fields in
braces, which are put in as text and never evaluated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_ultralong.evaluation.benchmarks.prompt_templates import fill
from megatron_ultralong.evaluation.benchmarks.words import ADJECTIVES, COMMON, NOUNS


@dataclasses.dataclass(frozen=True)
class Template:
    """A prompt.

    Attributes:
        text: with {context} and further fields, up to where the answer begins.
        prefix: how the answer begins.
    """

    text: str
    prefix: str

    def compose(self, context: str, fields: Mapping[str, Any]) -> tuple[str, str, int]:
        """The prompt, the answer's prefix, and where the context begins in the prompt.

        Raises:
            UserError: a place is none of the fields.
        """
        head, _, tail = self.text.partition("{context}")
        head = fill(head, fields)
        return head + context + fill(tail, fields), fill(self.prefix, fields), len(head)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wording:
    """All sentences.

    Attributes:
        name: "ours" or "official".
        commit: of the clone; None: our own, or no git clone.
        niah: fields {type_needle_v} and {query}; several values are asked for.
        niah_one: the same where one is.
        needle: fields {type_needle_v}, {key} and {value}.
        vt: fields {query} and {num_v}.
        cwe: field {num_cw}.
        fwe: no further field.
        qa: field {query}.
        document: fields {i} and {document}.
        noise: the line that noise repeats.
        adjectives: first halves of keys ("brave-otter").
        nouns: second halves.
        common_words: what common words extraction lists.
        more_words: a JSON file of what it lists instead where those do not do; None: made-up ones.
        words: whose words these are.
    """

    name: str
    commit: str | None = None
    niah: Template
    niah_one: Template
    needle: str
    vt: Template
    cwe: Template
    fwe: Template
    qa: Template
    document: str
    noise: str
    adjectives: tuple[str, ...] = ADJECTIVES
    nouns: tuple[str, ...] = NOUNS
    common_words: tuple[str, ...] = COMMON
    more_words: Path | None = None
    words: str = "ours"


OURS = Wording(
    name="ours",
    niah=Template(
        "The text below has secret {type_needle_v} tucked away in it, each with the name that it belongs to. Keep them "
        "in mind: a question about the {type_needle_v} follows.\n{context}\nWhich secret {type_needle_v} belong to "
        "{query} by the text above?",
        " By the text above, the secret {type_needle_v} that belong to {query} are",
    ),
    niah_one=Template(
        "The text below has a secret {type_needle_v} tucked away in it, with the name that it belongs to. Keep it in "
        "mind: a question about the {type_needle_v} follows.\n{context}\nWhich secret {type_needle_v} belongs to "
        "{query} by the text above?",
        " By the text above, the secret {type_needle_v} that belongs to {query} is",
    ),
    needle="Among the secret {type_needle_v}, {key} has {value}.",
    vt=Template(
        "Variables are assigned between the lines of the text below. Follow every assignment.\n\n{context}\nQuestion: "
        "Which variables hold the value {query} by the text above?",
        " Answer: Following the assignments in the text above, the {num_v} variables that hold the value {query} are: ",
    ),
    cwe=Template(
        "A numbered list of words follows. Some of them occur more often than the others; keep those in mind.\n"
        "{context}\nQuestion: Which {num_cw} words occur most often in the list above?",
        " Answer: The {num_cw} words that occur most often in the list are:",
    ),
    fwe=Template(
        "The text below is made of coded words. Count how often each of them occurs. {context}\nQuestion: Which three "
        "coded words occur most often in the text above, the dots '...' left out? Name them and explain nothing.",
        " Answer: The three coded words that occur most often in the text above are:",
    ),
    qa=Template(
        "A question about the documents below follows. Reply with the answer and nothing else.\n\n{context}\n\n"
        "Answer the question by the documents above. Reply with the answer and nothing else.\n\nQuestion: {query}",
        " Answer:",
    ),
    document="Document {i}:\n{document}",
    noise="Rain fell on the roof. The road lay empty. A lamp burned late. Nobody came by. In time it was morning.",
)
