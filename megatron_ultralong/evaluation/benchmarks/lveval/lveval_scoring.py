"""How LV-Eval's eleven sets are scored, by its metrics.py and evaluation.py at 63e7ae9.

Only the first of a question's answers counts. Sets with keywords have a gate before token F1: the share of the
keywords' tokens that the answer has, those on a list of frequent words not counted as had, though counted in the whole.
The README has the listed words also removed from F1; the code, and so ours, does not. Keywords that leave no token
(punctuation alone, or an English article) divide by zero there and are no gate here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from megatron_ultralong.evaluation.benchmarks import text_metrics
from megatron_ultralong.evaluation.samples import Sample

ENGLISH_GATE, CHINESE_GATE = 0.2, 0.4

_ENGLISH = """
about and are as at be because being but by does for from had has have he her his in is it of on or she that their they
this to was were what when which who with
"""
FREQUENT_ENGLISH = frozenset(_ENGLISH.split())
_CHINESE = """
c × ‰ 一定 一种 丁 万元 上 不 与 个 中 为 主要 也 了 于 亩 亿元 从 以 以及 会 但 位于 你 使 使用 元 其他 具有
到 包括 受 变得 可以 号 后 和 因素 在 地 基于 对 将 小 已经 带 年 并 度 形 或 或者 所 才 指 方面 无 日 时 是 月
有 条 来 根据 法 然后 片 用 用于 由 的 等 类 给 而 能 至 要 让 进行 通过 首先
"""
FREQUENT_CHINESE = frozenset(_CHINESE.split())
"""Words that say nothing: one of them is no keyword that an answer has."""


def english_f1(prediction: str, sample: Sample) -> float:
    """Token F1, without a gate."""
    return text_metrics.english_f1(prediction, sample.outputs[0])


def chinese_f1(prediction: str, sample: Sample) -> float:
    """F1 over jieba's words, without a gate."""
    return text_metrics.f1(*map(text_metrics.chinese_words, (prediction, sample.outputs[0])))


def english_gated_f1(prediction: str, sample: Sample) -> float:
    """Token F1, or 0 where less than a fifth of the keywords' tokens are there; no gate without keywords."""
    tokens = text_metrics.english_tokens(prediction)
    keywords = text_metrics.english_tokens(_keywords(sample))
    if _misses(tokens, keywords, FREQUENT_ENGLISH, ENGLISH_GATE):
        return 0.0
    return text_metrics.f1(tokens, text_metrics.english_tokens(sample.outputs[0]))


def chinese_gated_f1(prediction: str, sample: Sample) -> float:
    """F1 over jieba's words, or 0 where less than two fifths of the keywords are there; without any, the answer's."""
    words, reference = map(text_metrics.chinese_words, (prediction, sample.outputs[0]))
    keywords = text_metrics.chinese_words(_keywords(sample)) if _keywords(sample) else reference
    if _misses(words, keywords, FREQUENT_CHINESE, CHINESE_GATE):
        return 0.0
    return text_metrics.f1(words, reference)


def _keywords(sample: Sample) -> str:
    return sample.extra.get("keywords") or ""


def _misses(tokens: Sequence[str], keywords: Sequence[str], frequent: frozenset[str], gate: float) -> bool:
    had = sum(count for token, count in text_metrics.shared(tokens, keywords).items() if token not in frequent)
    return bool(keywords) and had / len(keywords) < gate


def chinese_rouge_l(prediction: str, sample: Sample) -> float:
    """ROUGE-L over jieba's words without frequent ones, cut a second time with spaces between them, as theirs are."""
    return text_metrics.rouge_l_distinct(*map(_telling_words, (prediction, sample.outputs[0])))


def _telling_words(text: str) -> list[str]:
    again = text_metrics.cut_words(" ".join(text_metrics.cut_words(text)))
    words = [word for word in map(text_metrics.chinese_text, again) if word not in FREQUENT_CHINESE]
    return [word for word in words if word] or [""] * (len(words) > 1)  # nothing but blanks is one empty word there


SCORERS: dict[str, Callable[[str, Sample], float]] = {
    "hotpotwikiqa_mixup": english_gated_f1,
    "loogle_SD_mixup": english_gated_f1,
    "loogle_CR_mixup": english_gated_f1,
    "loogle_MIR_mixup": english_gated_f1,
    "multifieldqa_en_mixup": english_gated_f1,
    "multifieldqa_zh_mixup": chinese_gated_f1,
    "factrecall_en": english_f1,
    "factrecall_zh": chinese_f1,
    "cmrc_mixup": chinese_gated_f1,
    "lic_mixup": chinese_gated_f1,
    "dureader_mixup": chinese_rouge_l,
}
"""Sets by LV-Eval's names."""
