# ruff: noqa: RUF001
"""Text in the scripts that tokenizers treat differently, and adversarial texts made of it by rule."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterator, Sequence

_LATIN = (
    "The quick brown fox, it's said, jumped over 1,234,567 lazy dogs in 2024. \"Don't!\" she'll cry; THEY'RE gone.\n"
    "Être ou ne pas être: là où naît l'œuvre, Übermäßig größer, ¿señor? ¡Ñandú! Żółć, İstanbul, ﬁancé.\n\n"
    "    def f(x):\n\treturn x ** 2  # tabs,  two  spaces   and trailing ones   \n\n\n"
)
_CYRILLIC = (
    "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.\n"
    "Ёжик съел 12 345 яблок; йод, Київ, Їжак, ђак и љубав. Цена - 1 000,50 руб.\n"
)
_ARABIC = (
    "اللغة العربية جميلة، وَالْكِتَابُ خَيْرُ جَلِيسٍ. كم عددها؟ ١٢٣٤ أو 1234.\n"
    "فارسی: می‌خواهم بروم؛ اردو: پاکستان میں ۱۲ موسم ہیں۔\n"
)
_DEVANAGARI = "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है। क़िला १२३४, ज़मीन, श्री।\n"
_THAI = "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ น้ำ ๑๒๓๔ บาท กำลังดี\n"
_CHINESE = "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，共12345人。繁體：臺灣龍門，㍿ ① 豈﹐。\n"
_JAPANESE = (
    "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。カタカナ、ﾊﾝｶｸ、１２３円。\n"
)
_KOREAN = "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. 가격은 12,345원입니다.\n"
_EMOJI = (
    "\U0001f600\U0001f602 ok \U0001f44d\U0001f3fd\U0001f468\u200d\U0001f469\u200d\U0001f467"
    "\U0001f1eb\U0001f1f7\u2764\ufe0f 1\ufe0f\u20e3\U0001f9d1\u200d\U0001f680 "
    "\u00a9 x\u200by\ufeffz\u00a0\u3000\u2028\u0085\n"
)
SCRIPTS: dict[str, str] = {
    "latin": _LATIN,
    "cyrillic": _CYRILLIC,
    "arabic": _ARABIC,
    "devanagari": _DEVANAGARI,
    "thai": _THAI,
    "chinese": _CHINESE,
    "japanese": _JAPANESE,
    "korean": _KOREAN,
    "emoji": _EMOJI,
    "mixed": "".join(
        " ".join(words) + "\n"
        for words in zip(_LATIN.split(), _CYRILLIC.split() * 3, _ARABIC.split() * 3, _KOREAN.split() * 4, strict=False)
    )
    + "mix混ぜрус한국ไทยहिन्दीعربي\U0001f600a1б2",
    "nfd": unicodedata.normalize("NFD", _LATIN + _CYRILLIC + _KOREAN + _JAPANESE + _DEVANAGARI),
}
"""A few sentences of each."""

_SPACES = ["", " ", "  ", "   ", "\n", "\r\n", "\n\n", "\t", " \n", "\u00a0", "\u3000", "\u200b", "\ufeff", "\u2581"]
_PIECES = ["'s", "'LL", "a", "Z", "7", "1234", ".", "...", "<", ">", "|", "<s>", "</s>", "<unk>", "<0x0A>", "\u0301"]
_PIECES += [
    "\u093c",
    "\u0e33",
    "\u1100\u1161",
    "e\u0301",
    "\u212b",
    "\ufb01",
    "\U0001f1eb",
    "\u200d",
    "\x00",
    "\ufffd",
    "\x7f",
]


def fuzz(count: int, specials: Sequence[str], seed: int = 0) -> Iterator[str]:
    """Adversarial texts: words and letters of every script, added tokens, and what may stand between them."""
    draw = random.Random(seed)
    words = [word for text in SCRIPTS.values() for word in text.split()]
    letters = sorted({letter for text in SCRIPTS.values() for letter in text})
    kinds = [words, letters, _PIECES, list(specials) or _PIECES]
    for _ in range(count):
        text = ""
        for _ in range(draw.randrange(1, 14)):
            text += draw.choice(draw.choices(kinds, (5, 3, 2, 4))[0]) + draw.choices(_SPACES, (14, 8, *[1] * 12))[0]
        yield draw.choice(_SPACES) + text


def neighbours(token: str) -> list[str]:
    """A token beside letters, digits, marks, spaces of every kind, itself, and parts of itself."""
    around = [
        "",
        "a",
        "Z",
        "7",
        ".",
        "_",
        " ",
        "  ",
        "\n",
        "\t",
        "\u00a0",
        "\u3000",
        "\u0301",
        "東",
        "б",
        "ก",
        "\U0001f600",
    ]
    texts = [f"{before}{token}{after}" for before in around for after in around]
    return texts + [token * 2, f"{token} {token}", token[:-1], token[1:], token.upper(), token.lower()]
