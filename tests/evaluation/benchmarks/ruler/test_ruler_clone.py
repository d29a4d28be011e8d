"""A clone's wording is read and nothing of it runs."""

import os
from pathlib import Path

import pytest

from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.benchmarks.ruler.ruler_clone import wording_of
from megatron_ultralong.evaluation.benchmarks.ruler.wording import OURS
from megatron_ultralong.evaluation.registry import MakeOptions, find_task

CONSTANTS = '''
import os
TASKS = {
    'niah': {'tokens_to_generate': 128, 'template': """Some {type_needle_v} are in it.\\n{context}\\nWhat are all the {type_needle_v} of {query}?""",
             'answer_prefix': """ They are"""},
    'variable_tracking': {'template': "T {context} {query}", 'answer_prefix': " {num_v} are: "},
    'common_words_extraction': {'template': "C {context}", 'answer_prefix': ""},
    'freq_words_extraction': {'template': "F {context}", 'answer_prefix': ""},
    'qa': {'template': "Q {context} {query}"},
}
'''  # noqa: E501
NIAH = """
raise SystemExit("it ran")
needle = "The {type_needle_v} of {key}: {value}."
if True:
    haystack = open("nothing")
else:
    haystack = "Noise. "
"""
QA = 'DOCUMENT_PROMPT = "{i}) {document}"\n'


@pytest.fixture
def clone(tmp_path):
    folder = tmp_path / "scripts" / "data" / "synthetic"
    folder.mkdir(parents=True)
    for name, text in (("constants", CONSTANTS), ("niah", NIAH), ("qa", QA)):
        (folder / f"{name}.py").write_text(text)
    return tmp_path


def test_sentences_are_literals(clone):
    wording = wording_of(clone)
    assert (wording.name, wording.commit, wording.noise, wording.document) == (
        "official", "unknown", "Noise. ", "{i}) {document}"
    )  # fmt: skip
    assert wording.niah_one.text == "A {type_needle_v} is in it.\n{context}\nWhat is the {type_needle_v} of {query}?"
    assert (wording.niah_one.prefix, wording.qa.prefix) == (" They is", "")
    assert wording_of(None) is OURS


def test_samples_are_worded_so(clone, tokenizer):
    options = MakeOptions(tokenizer=tokenizer, lengths=(2000,), count=1, official=clone)
    (sample,) = find_task("ruler/niah_single_1").make(options)
    assert sample.input.startswith("A number is in it.\nNoise. \n")
    assert sample.extra["wording"] == "official" and sample.extra["official_commit"] == "unknown"
    assert sample.input[slice(*sample.place)].startswith("The numbers of ")


@pytest.mark.parametrize(
    "file, old, new, said",
    [
        ("constants.py", "{context}", "{text}", "no template of niah"),
        ("constants.py", "'qa'", "'other'", "no template of qa"),
        ("constants.py", "TASKS =", "TASKS = os or", "not made of literals"),
        ("constants.py", "TASKS", "TASK", "nothing is assigned to 'TASKS'"),
        ("constants.py", "TASKS =", "TASKS = = ", "no Python"),
        ("niah.py", '"Noise. "', "open('x')", "no text haystack"),
        ("niah.py", "needle =", "needle = =", "no Python"),
        ("qa.py", "DOCUMENT", "OTHER", "no text DOCUMENT_PROMPT"),
    ],
)
def test_a_clone_of_something_else_is_refused(clone, file, old, new, said):
    path = clone / "scripts" / "data" / "synthetic" / file
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=said):
        wording_of(clone)


def test_a_missing_word_list_is_named_when_it_is_needed(clone, tokenizer):
    words = clone / "scripts" / "data" / "synthetic" / "json" / "english_words.json"
    words.parent.mkdir()
    words.write_text("version https://git-lfs.github.com/spec/v1\n")
    options = {"tokenizer": tokenizer, "count": 1, "official": clone}
    make = find_task("ruler/cwe").make
    assert next(make(MakeOptions(lengths=(7000,), **options))).extra["words"] in ("ours", "wonderwords")
    with pytest.raises(UserError, match="git lfs pull"):
        list(make(MakeOptions(lengths=(600_000,), **options)))


def test_the_real_clone():
    clone = os.environ.get("OFFICIAL_RULER")
    if not clone:
        pytest.skip("OFFICIAL_RULER names no clone of NVIDIA/RULER")
    wording = wording_of(Path(clone))
    assert all("{context}" in each.text for each in (wording.niah, wording.vt, wording.cwe, wording.fwe, wording.qa))
    assert wording.niah_one.text.startswith("A ") and wording.niah_one.prefix.endswith(" is")
    assert wording.noise.count(".") == 5 and len(wording.commit) == 40
