"""RULER's own sentences and word list, read from the user's clone of NVIDIA/RULER: as literals, nothing is executed.

They are found by the names they have in the sources as of commit c3f5e3b; where one is missing, the clone is refused.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import logging
from pathlib import Path
from typing import Any

from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.benchmarks.official_clone import commit, literal, text_of
from megatron_ultralong.evaluation.benchmarks.ruler.wording import OURS, Template, Wording
from megatron_ultralong.files import read_json

logger = logging.getLogger(__name__)

_SOURCES = Path("scripts/data/synthetic")
_ONE = (("Some", "A"), ("are all", "is"), ("are", "is"), ("answers", "answer"))
"""What niah.py replaces in its template, in this order, where one value is asked for."""


@functools.cache
def wording_of(clone: Path | None) -> Wording:
    """The clone's wording; None: our own.

    Raises:
        UserError: a file or a literal of the clone is missing.
    """
    if clone is None:
        return OURS
    folder = Path(clone) / _SOURCES
    tasks = literal(folder / "constants.py", "TASKS")
    niah, vt, cwe, fwe, qa = (
        _template(folder / "constants.py", tasks, name)
        for name in ("niah", "variable_tracking", "common_words_extraction", "freq_words_extraction", "qa")
    )
    return Wording(
        name="official",
        commit=commit(Path(clone)),
        niah=niah,
        niah_one=Template(_singular(niah.text), _singular(niah.prefix)),
        needle=_text(folder / "niah.py", "needle"),
        vt=vt,
        cwe=cwe,
        fwe=fwe,
        qa=qa,
        document=_text(folder / "qa.py", "DOCUMENT_PROMPT"),
        noise=_text(folder / "niah.py", "haystack"),
        more_words=folder / "json" / "english_words.json",
        **_wonderwords(),
    )


def _wonderwords() -> dict[str, Any]:
    """Lists of the package that RULER takes its words from, as data; none where it is not installed."""
    spec = importlib.util.find_spec("wonderwords")
    if spec is None or not spec.submodule_search_locations:
        logger.info("wonderwords, where RULER takes its words from, is not installed: keys and lists are of our words.")
        return {}
    assets = Path(spec.submodule_search_locations[0]) / "assets"
    try:
        texts = [(assets / f"{name}list.txt").read_text(encoding="utf-8") for name in ("adjective", "noun", "verb")]
    except OSError as error:
        raise UserError(f"{assets}: wonderwords' lists cannot be read ({error}); install it anew.") from None
    adjectives, nouns, verbs = (tuple(filter(None, map(str.rstrip, text.splitlines()))) for text in texts)
    common = tuple(sorted({*adjectives, *nouns, *verbs}))
    return {"adjectives": adjectives, "nouns": nouns, "common_words": common, "words": "wonderwords"}


@functools.cache
def read_words(path: Path) -> tuple[str, ...]:
    """The word list of a clone, each once.

    Raises:
        UserError: it is missing or no object of words.
    """
    mend = "take it out of the clone's LFS (git lfs pull), or leave out --official"
    words = read_json(path, "RULER's word list", mend)
    if not isinstance(words, dict) or not all(isinstance(word, str) for word in words.values()):
        raise UserError(f"{path}: it is no object of words; {mend}.")
    return tuple(dict.fromkeys(words.values()))


def _text(path: Path, name: str) -> str:
    """The first string that a file assigns to a name, at whatever depth: its noise stands in a branch."""
    try:
        nodes = list(ast.walk(ast.parse(text_of(path))))
    except (SyntaxError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: it is no Python ({error}); clone NVIDIA/RULER anew.") from None
    for node in nodes:
        if isinstance(node, ast.Assign) and name in map(ast.unparse, node.targets):
            if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
                return node.value.value
    raise UserError(f"{path}: there is no text {name} in it; give a clone of NVIDIA/RULER, as of commit c3f5e3b.")


def _template(path: Path, tasks: Any, name: str) -> Template:
    entry = tasks.get(name) if isinstance(tasks, dict) else None
    if (
        not isinstance(entry, dict)
        or not isinstance(entry.get("template"), str)
        or "{context}" not in entry["template"]
    ):
        raise UserError(f"{path}: TASKS has no template of {name}; give a clone of NVIDIA/RULER, as of commit c3f5e3b.")
    return Template(entry["template"], str(entry.get("answer_prefix", "")))


def _singular(text: str) -> str:
    for several, one in _ONE:
        text = text.replace(several, one)
    return text
