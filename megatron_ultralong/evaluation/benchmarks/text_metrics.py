"""The text metrics that benchmarks share: SQuAD's token F1, character F1, ROUGE-L in two dialects, jieba's words.

Each does what the code that made the published numbers does, quirks included (docs/evaluation_benchmarks.md has the
sources). F1s are linear in the text; ROUGE-L takes the product of both lengths. jieba and rouge-score are the extra
`[eval]`, imported where they are used.
"""

from __future__ import annotations

import functools
import re
import string
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

from megatron_ultralong.errors import UserError

_RANGES = (
    "\u2013\u2014 \u2018\u2019 \u201b\u201f \u2026\u2027 \u3001\u3003 \u300b\u3011 \u3014\u301f \u3030\u3030 "
    "\u303e\u303f \ufe4f\ufe4f \uff01\uff0d \uff0f\uff0f \uff1a\uff20 \uff3b\uff40 \uff5b\uff64"
)  # first and last of each run; a left double angle bracket (U+300A) and a full-width full stop (U+FF0E) are in none
CHINESE_PUNCTUATION = string.punctuation + "".join(
    chr(code) for run in _RANGES.split(" ") for code in range(ord(run[0]), ord(run[1]) + 1)
)
"""What counts as punctuation in Chinese answers: ASCII's, and 74 further characters."""

_ENGLISH = str.maketrans("", "", string.punctuation)
_CHINESE = str.maketrans("", "", CHINESE_PUNCTUATION)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
INSTALL = "pip install 'megatron-ultralong[eval]'"


def english_tokens(text: str) -> list[str]:
    """SQuAD's tokens: lower case, without punctuation, then without articles, split at whitespace."""
    return _ARTICLES.sub(" ", text.lower().translate(_ENGLISH)).split()


def chinese_text(text: str) -> str:
    """Lower case, without punctuation, then without whitespace."""
    return "".join(text.lower().translate(_CHINESE).split())


def chinese_words(text: str) -> list[str]:
    """jieba's words of a text, each as `chinese_text`, the empty ones left out."""
    return [word for word in map(chinese_text, cut_words(text)) if word]


def cut_words(text: str) -> list[str]:
    """jieba's words of a text, whitespace and punctuation among them.

    Raises:
        UserError: jieba is not installed.
    """
    return list(_jieba().cut(text, cut_all=False))


@functools.cache
def _jieba() -> Any:
    """A tokenizer of jieba's; its dictionary is built, in a second, not read from /tmp, where anyone may write it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pkg_resources, and of escapes in its source
            import jieba
    except ImportError:
        raise UserError(f"Chinese answers are scored over jieba's words, and jieba is missing; {INSTALL}.") from None
    tokenizer = jieba.Tokenizer()
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    return tokenizer


def shared(first: Sequence[str], second: Sequence[str]) -> Counter[str]:
    """Tokens that both have, as often as both have them."""
    return Counter(first) & Counter(second)


def f1(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over tokens, counted with repetition; 0 where none is shared."""
    same = shared(prediction, reference).total()
    if same == 0:
        return 0.0
    precision, recall = same / len(prediction), same / len(reference)
    return (2 * precision * recall) / (precision + recall)


def english_f1(prediction: str, reference: str) -> float:
    """F1 over SQuAD's tokens."""
    return f1(english_tokens(prediction), english_tokens(reference))


def character_f1(prediction: str, reference: str) -> float:
    """F1 over characters of `chinese_text`."""
    return f1(chinese_text(prediction), chinese_text(reference))


def rouge_l_distinct(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """ROUGE-L of one sentence as the package `rouge` 1.0.1 has it: everything counted without repetition.

    The longest common subsequence is found with repetition, and then its distinct words are counted, over the distinct
    words of each side. Of several longest ones it is the one that a walk from both ends finds, going back in the
    reference where that alone keeps the length, else in the prediction. The package walks by recursion, so that
    a thousand words overrun Python's stack and LV-Eval then gives 0; this does not.

    Args:
        prediction: words; none: 0.
        reference: words; none: 0.
    """
    if not prediction or not reference:
        return 0.0
    rows = [[0] * (len(prediction) + 1)]
    for word in reference:
        above, row = rows[-1], [0]
        for j, other in enumerate(prediction):
            row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
        rows.append(row)
    i, j, found = len(reference), len(prediction), set[str]()
    while i and j:
        if reference[i - 1] == prediction[j - 1]:
            i, j = i - 1, j - 1
            found.add(reference[i])
        elif rows[i - 1][j] > rows[i][j - 1]:
            i -= 1
        else:
            j -= 1
    recall, precision = len(found) / len(set(reference)), len(found) / len(set(prediction))
    return 2.0 * ((precision * recall) / (precision + recall + 1e-8))


def rouge_lsum(prediction: str, references: Sequence[str]) -> float:
    """Best rougeLsum F over references, as Hugging Face's `evaluate` computes it with google-research's rouge-score.

    Lines are sentences; tokens are runs of a-z and 0-9 in lower case, without stemming.

    Raises:
        UserError: rouge-score is not installed.
    """
    scorer = _rouge_scorer()
    return max((scorer.score(reference, prediction)["rougeLsum"].fmeasure for reference in references), default=0.0)


@functools.cache
def _rouge_scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise UserError(f"summaries are scored by ROUGE, and rouge-score is missing; {INSTALL}.") from None
    return RougeScorer(["rougeLsum"], use_stemmer=False)
