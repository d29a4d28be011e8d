"""How InfiniteBench's twelve tasks are scored, by its src/compute_scores.py at 88b3daa.

Quirks are kept, since published numbers have them. Where theirs ends in a traceback or can give nothing but 0, ours
says what it means instead: a decimal answer to math_find is compared as the number it is, a list as label of
kv_retrieval stands for its first entry, and numbers of thousands of digits are compared as digits. GPT-4's math_calc,
of which theirs drops the first number, is scored here as every other model's.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from megatron_ultralong.evaluation.benchmarks import text_metrics
from megatron_ultralong.evaluation.samples import Sample

_DIGITS = re.compile("[0-9]+")
_NUMBER = re.compile(r"\d+\.\d+|\d+")


def _spaced(text: str, characters: str) -> str:
    """The text with each of these characters turned into a space."""
    return text.translate(dict.fromkeys(map(ord, characters), " "))


def first_digits(prediction: str, sample: Sample) -> float:
    """passkey, number_string: the first run of digits is the first label."""
    found = _DIGITS.search(prediction)
    return float((found.group() if found else "") == sample.outputs[0])


def kv_retrieval(prediction: str, sample: Sample) -> float:
    """The label is one of the words."""
    return float(sample.outputs[0] in _spaced(prediction, "\n:\"'.,?!{}").split())


def longdialogue_qa_eng(prediction: str, sample: Sample) -> float:
    """The first label is one of the words in upper case."""
    words = _spaced(prediction.strip(), "\n:\"'.,?!{}").split()
    return float(sample.outputs[0] in [word.upper() for word in words])


def longbook_choice_eng(prediction: str, sample: Sample) -> float:
    """The first letter if it is A to D, else the whole, else what follows a phrase, else the first word of "ABCD"."""
    labels, prediction = sample.outputs, prediction.strip()
    if not prediction:
        return 0.0
    if prediction[0] in "ABCD":
        return float(prediction[0] in labels)
    if prediction in labels:
        return 1.0
    prediction = re.sub(" {2,}", " ", _spaced(prediction, "\n\"'.,?!{}"))
    after = _after_phrase(prediction, ("answer is:", "answer:", "answer is", "option is"))
    if after is not None:
        return float(any(map(after.startswith, labels)) and after != "")
    return float(next((word in labels for word in prediction.split() if word in "ABCD"), False))


def code_debug(prediction: str, sample: Sample) -> float:
    """The letter with "." or ":" at the beginning, else letter or function's name after a phrase."""
    function, letter = sample.outputs[0], sample.outputs[-1]
    prediction = prediction.strip()
    if prediction[:2] in (f"{letter}.", f"{letter}:"):
        return 1.0
    prediction = _spaced(prediction, "\n`'\"-*").replace("Option", " ").replace("option", " ")
    prediction = re.sub(" {2,}", " ", prediction)
    after = _after_phrase(prediction, ("answer is:", "is:", "answer:"))  # theirs also has one with "option" in it
    return float(bool(after) and (after or "").startswith((letter, function)))


def _after_phrase(text: str, phrases: tuple[str, ...]) -> str | None:
    """What stands one character after the first place of the first phrase that is there; None: none is."""
    for phrase in phrases:
        place = text.find(phrase)
        if place >= 0:
            return text[place + len(phrase) + 1 :]
    return None


def longbook_qa_eng(prediction: str, sample: Sample) -> float:
    """Best F1 over SQuAD's tokens."""
    return max(text_metrics.english_f1(prediction, label) for label in sample.outputs)


def longbook_qa_chn(prediction: str, sample: Sample) -> float:
    """Best F1 over characters."""
    return max(text_metrics.character_f1(prediction, label) for label in sample.outputs)


def longbook_sum_eng(prediction: str, sample: Sample) -> float:
    """Best rougeLsum."""
    return text_metrics.rouge_lsum(prediction, sample.outputs)


def math_find(prediction: str, sample: Sample) -> float:
    """The first number, which has no sign, is the label."""
    found, label = _NUMBER.search(prediction), number(sample.outputs[0])
    if found is None or label is None:
        return 0.0
    value = number(found.group())
    if isinstance(label, float) and value is not None:
        value = float(found.group())
    return float(value == label)


def number(text: str) -> int | float | None:
    """A number as JSON or a text spells it: an integer if it is one; None: it is none."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:  # also of more digits than Python reads
            continue
    return None


def math_calc(prediction: str, sample: Sample) -> float:
    """Share of the values that the answer's runs of digits begin with."""
    right = 0
    for value, label in zip(_DIGITS.findall(prediction), sample.outputs, strict=False):
        if (value.lstrip("0") or "0") != label:
            break
        right += 1
    return right / len(sample.outputs)


def code_run(prediction: str, sample: Sample) -> float:
    """The last word is the label, as integers."""
    words = _spaced(prediction.strip(), "\n.`'\":").split()
    try:
        return float(bool(words) and int(words[-1]) == number(sample.outputs[0]))
    except ValueError:
        return 0.0


SCORERS: dict[str, Callable[[str, Sample], float]] = {
    "passkey": first_digits,
    "number_string": first_digits,
    "kv_retrieval": kv_retrieval,
    "longbook_sum_eng": longbook_sum_eng,
    "longbook_choice_eng": longbook_choice_eng,
    "longbook_qa_eng": longbook_qa_eng,
    "longbook_qa_chn": longbook_qa_chn,
    "longdialogue_qa_eng": longdialogue_qa_eng,
    "math_find": math_find,
    "math_calc": math_calc,
    "code_run": code_run,
    "code_debug": code_debug,
}
"""Tasks by InfiniteBench's names."""
