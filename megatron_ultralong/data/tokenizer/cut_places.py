r"""Where the texts of a tokenizer may be cut without changing its ids, by the parts of its tokenizer.json.

The argument. A place between the characters a and b is exact where (1) in every text a part that is encoded on its own
ends there, (2) what stands before it is split the same whether or not anything follows, and (3) what follows is split
the same whatever stands before. All splits here match from the left to the right and none looks back, so (3) follows
from (1). They look ahead only by running out of a class of characters, where b counts as the end of the text does, and
in `\s+(?!\S)`, which is met only where a is white space, and a never is. (2) follows. Left is (1):

- No known split has a part in which a space follows a character that is no white space. So a text is cut before every
  space but the first of several: Latin, Cyrillic, Arabic, Devanagari, Korean, and Thai between its phrases.
- None has a part in which a letter or digit is followed by one of `_STOPS` (line ends and punctuation, also of Chinese
  and Japanese, which write no spaces; not "'", which begins "'s", nor the middle dot, which a split of DeepSeek keeps
  with letters), or a letter by a digit. Letters are those of `_LETTERS`, which are letters in all versions of Unicode.
- GPT-2, Llama 3 and Qwen 2 split before a mark too, so that Thai without spaces is cut before a vowel sign. The later
  splits take marks for letters: Thai without a space is one part to them, and is held whole.

Where DeepSeek splits three times, the first two see no part across these places, so the third decides. NFC composes
nothing across them: no b combines with what stands before it, and none is moved before it. With `add_prefix_space` and
no split before it, byte-level puts a space before what does not begin with one: such text is cut before spaces only.

Tokenizers with "▁" for a space (Metaspace, or Prepend and Replace) and no split merge within the whole text; but if no
token of the vocabulary has a "▁" behind another character, none is merged across the beginning of a run of them, and
the merges on both sides are the same, in the same order. Cut before a space, the rest begins with "▁" as it would in
the whole, so that Metaspace prepends none; Prepend does, so the space is dropped with the cut. The same holds for other
stops, but a tokenizer that puts "▁" before every text would put one there: with it, text without spaces is held whole.
Unigram adds up scores from the beginning of a part, whose rounding could decide between two ways to write a word, so it
is cut where Metaspace splits at "▁" alone.

Added tokens are found first. If none lies across the cut, those on the left are found whatever follows and the others
whatever stands before, leftmost and longest as in the whole. `_barred` lists the texts between which a cut is not made:
each token's parts where it holds a place itself; the end of one that takes the white space behind it (`rstrip`); both
ends of one that looks at its neighbours (`single_word`). The white space that `lstrip` takes begins at the cut. Tokens
looked for in normalized text are seen here by the letters of their decomposition: text is not cut before one of those.

A tokenizer with any other part is not cut.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

from megatron_ultralong.data.tokenizer.cutting import Cuts

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_HEAD = r"[^\r\n\p{L}\p{N}]?"
_END = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _SPACES

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_HEAD}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{_SPACES}"
_QWEN2 = _LLAMA3.replace("{1,3}", "")
_QWEN35 = _QWEN2.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
_TEKKEN = rf"{_HEAD}{_UPPER}*{_LOWER}+|{_HEAD}{_UPPER}+{_LOWER}*|\p{{N}}{_END}"
_O200K = rf"{_HEAD}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_HEAD}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|\p{{N}}{{1,3}}{_END}"
_DEEPSEEK = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^"""
    + "\r\n"
    + r"\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+["
    + "\r\n]*"
    + r"|\s*["
    + "\r\n"
    + r"]+|\s+(?!\S)|\s+",
)
_SPLITS = {  # and whether they split before a mark
    (_GPT2,): True,
    (_LLAMA3,): True,
    (_QWEN2,): True,
    (_QWEN35,): False,
    (_TEKKEN,): False,
    (_O200K,): False,
    _DEEPSEEK: False,
}

_NOT_WHITE = r"[^\s\u180e\u200b\u2581\ufeff]"
_LETTERS = (
    "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u0391-\u03a1\u03a3-\u03ce\u0400-\u0481\u05d0-\u05ea\u0621-\u063a"
    "\u0641-\u064a\u0905-\u0939\u0e01-\u0e30\u1e00-\u1e99\u3041-\u3094\u30a1-\u30fa\u3400-\u4db5\u4e00-\u9fa5\uac00-\ud7a3"
)
_LINE_ENDS = "\n\r"
_STOPS = (
    _LINE_ENDS + '!"()*+,-./:;=?\u060c\u061b\u061f\u0964\u0965\u2018\u201c\u201d\u2026\u3001\u3002'
    "\u3008\u3009\u300a\u300b\u300c\u300d\u300e\u300f\u3010\u3011\uff01\uff08\uff09\uff0c\uff0e\uff1a\uff1b\uff1f"
)
_DIGITS = "0123456789"
_THAI, _THAI_MARKS = (
    "\u0e01-\u0e30",
    "\u0e31\u0e34\u0e35\u0e36\u0e37\u0e38\u0e39\u0e3a\u0e47\u0e48\u0e49\u0e4a\u0e4b\u0e4c\u0e4d\u0e4e",
)

_SPACE = "\u2581"
_BETWEEN = "\ud800"  # half a surrogate pair, which no token can hold
_PREPEND = {"type": "Prepend", "prepend": _SPACE}
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
_GEMMA = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}


@dataclasses.dataclass(frozen=True)
class _Rule:
    """The characters that a text is cut before."""

    stops: str = ""
    """Behind a letter or digit."""
    digits: str = ""
    """Behind a letter."""
    marks: str = ""
    """Behind a Thai letter."""
    spaces: str = " "
    """Behind anything but white space."""
    dropped: int = 0
    """Whether the space goes with the cut; what follows it must then be no white space."""


def find_cuts(tokenizer: dict[str, Any]) -> Cuts | None:
    """Where the texts of this tokenizer.json are cut, or None: nowhere (the argument is in the module's docstring)."""
    rule = _byte_level(tokenizer) or _metaspace(tokenizer)
    if rule is None:
        return None
    tokens = tokenizer.get("added_tokens") or []
    if _steps(tokenizer.get("normalizer"), "normalizers"):
        rule = _apart_from([token for token in tokens if token["normalized"]], rule)
    pattern = _pattern(rule)
    return pattern and Cuts(pattern, tuple(_barred(tokens, pattern, rule.dropped)), rule.dropped)


def _steps(part: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer as the list of its steps."""
    if part is None:
        return []
    return list(part[name]) if part["type"] == "Sequence" else [part]


def _byte_level(tokenizer: dict[str, Any]) -> _Rule | None:
    """The rule where byte-level follows a known split, its own or one before it."""
    *splits, level = _steps(tokenizer.get("pre_tokenizer"), "pretokenizers") or [{"type": "none"}]
    normalizers = _steps(tokenizer.get("normalizer"), "normalizers")
    if level["type"] != "ByteLevel" or any(step != {"type": "NFC"} for step in normalizers):
        return None
    if not splits and level.get("use_regex", True):
        return _Rule() if level.get("add_prefix_space") else _Rule(_STOPS, _DIGITS, _THAI_MARKS)
    isolated = all(split.get("behavior") == "Isolated" and not split.get("invert") for split in splits)
    known = tuple(split.get("pattern", {}).get("Regex") for split in splits)
    if known not in _SPLITS or not isolated or level.get("use_regex", True):
        return None
    return _Rule(_STOPS, _DIGITS, _THAI_MARKS if _SPLITS[known] else "")


def _metaspace(tokenizer: dict[str, Any]) -> _Rule | None:
    """The rule where "\u2581" stands for a space."""
    normalizers = _steps(tokenizer.get("normalizer"), "normalizers")
    splits = _steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    model = tokenizer["model"]
    if [split["type"] for split in splits] == ["Metaspace"] and not normalizers:
        if splits[0]["replacement"] != _SPACE:
            return None
        if splits[0].get("split", True) and model["type"] in ("BPE", "Unigram"):
            return _Rule()
        begins_bare = splits[0].get("prepend_scheme") == "never"
    elif normalizers in ([_REPLACE], [_PREPEND, _REPLACE]) and splits in ([], [_GEMMA]):
        begins_bare = _PREPEND not in normalizers
    else:
        return None
    beginnings = _never_merged_behind_others(model, _SPACE + _STOPS)
    if _SPACE not in beginnings:
        return None
    return _Rule(stops=beginnings.replace(_SPACE, "") if begins_bare else "", dropped=int(_PREPEND in normalizers))


def _never_merged_behind_others(model: dict[str, Any], characters: str) -> str:
    """Those of the characters that this BPE knows, and merges with nothing before them but themselves."""
    names = ("ignore_merges", "continuing_subword_prefix", "end_of_word_suffix", "dropout")
    if model["type"] != "BPE" or any(model.get(name) for name in names):
        return ""
    pairs = re.findall(f"(?s)([^{_BETWEEN}])(?=([{re.escape(characters)}]))", _BETWEEN.join(model["vocab"]))
    merged = {second for first, second in pairs if first != second}
    return "".join(each for each in characters if each in model["vocab"] and each not in merged)


def _apart_from(tokens: list[dict[str, Any]], rule: _Rule) -> _Rule:
    """The rule without the places that tokens could lie across which are looked for in normalized text."""
    characters: set[str] = set()
    for token in tokens:
        characters.update(unicodedata.normalize("NFD", token["content"]))
        if token["single_word"]:
            characters.update(_DIGITS)
        if token["rstrip"]:
            characters.update(" " + _LINE_ENDS)
    if _SPACE in characters:
        characters.add(" ")

    def fewer(places: str) -> str:
        return "".join(each for each in places if each not in characters)

    spaces, stops, digits = map(fewer, (rule.spaces, rule.stops, rule.digits))
    return dataclasses.replace(rule, spaces=spaces, stops=stops, digits=digits, marks="" if tokens else rule.marks)


def _pattern(rule: _Rule) -> re.Pattern[str] | None:
    """It begins with all that a text is cut before: the search skips whatever is none of that."""
    pairs = (
        (_NOT_WHITE, rule.spaces),
        (f"[{_LETTERS}0-9]", rule.stops),
        (f"[{_LETTERS}]", rule.digits),
        (f"[{_THAI}]", rule.marks),
    )
    behind = [f"(?<={before}[{re.escape(after)}])" for before, after in pairs if after]
    if not behind:
        return None
    every = re.escape("".join(after for _, after in pairs))
    return re.compile(f"[{every}](?:{'|'.join(behind)})" + (f"(?={_NOT_WHITE})" if rule.dropped else ""))


def _barred(tokens: list[dict[str, Any]], pattern: re.Pattern[str], dropped: int) -> Iterator[tuple[str, str]]:
    """Pairs of texts between which an added token forbids a cut."""
    for token in tokens:
        content = token["content"]
        for match in pattern.finditer(content + "a"):
            if match.start() < len(content):
                yield content[: match.start()], content[match.start() :]
        if token["rstrip"] or token["single_word"] or dropped:
            yield content, ""
        if token["single_word"] or dropped:
            yield "", content
        if dropped:
            yield "", " " + content
