import json

import pytest

from megatron_ultralong.data.corpus.corpus import open_corpus
from megatron_ultralong.data.decontamination.decontaminate import DecontaminationOptions, write_clean_list
from megatron_ultralong.data.resampling.listing import read_documents, write_resampled
from megatron_ultralong.data.resampling.policy import LengthPolicy
from megatron_ultralong.data.tokenizing.documents import Fields
from megatron_ultralong.data.tokenizing.run import tokenize_corpus
from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.samples import Sample, write_samples
from tests.data.conftest import write_lines

QUESTION = "A train leaves the old station at seven and reaches the harbour at nine; how far did it go?"
OTHER = "Which of these five rivers does the captain name first in the letter to his younger sister?"
FILLER = "words that are in no question at all and fill the page with nothing of note "


@pytest.fixture
def corpus(tmp_path, tokenizer):
    texts = [
        FILLER * 3,
        FILLER
        + "A TRAIN leaves the old station, at seven, and reaches the harbour at nine: how far did it go? "
        + FILLER,
        FILLER + "A train leaves the old station at seven and reaches the harbour at noon " + FILLER,
        FILLER * 5,
    ]
    path = write_lines(tmp_path / "in.jsonl", [{"text": text} for text in texts])
    tokenize_corpus([path], tmp_path / "c", tokenizer, Fields())
    return open_corpus(tmp_path / "c")


def run(corpus, tokenizer, files, folder, **options):
    report = write_clean_list(corpus, files, folder, tokenizer, DecontaminationOptions(**options), workers=1)
    assert report == json.loads((folder / "manifest.json").read_text())
    pairs = [json.loads(line) for line in (folder / "overlaps.jsonl").read_text().splitlines()]
    return report, pairs, read_documents(folder, corpus)


def test_what_overlaps_is_reported_and_left_out(corpus, tokenizer, tmp_path, caplog):
    caplog.set_level("INFO")
    rows = [
        {"question": QUESTION, "answer": "ninety miles"},
        {"question": OTHER, "answer": "the Rhine"},
        {"question": "Why?"},
    ]
    report, pairs, listed = run(corpus, tokenizer, [write_lines(tmp_path / "b.jsonl", rows)], tmp_path / "clean")
    assert listed.ids.tolist() == [0, 2, 3]
    # The sample has 21 words and so 9 13-grams; the first is in document 2, those of its 19-word question in 1.
    place = {"file": str(tmp_path / "b.jsonl"), "sample": "1"}
    assert [{name: pair[name] for name in ("document", "coverage", "shared_ngrams", *place)} for pair in pairs] == [
        {"document": 1, "coverage": 0.7778, "shared_ngrams": 7, **place},
        {"document": 2, "coverage": 0.1111, "shared_ngrams": 1, **place},
    ]
    assert pairs[0]["ngram"] in " ".join(QUESTION.replace(";", "").replace("?", "").lower().split())
    (row,) = report["against"]
    assert (row["samples"], row["too_short"], row["found"], row["covered"]) == (3, 1, 1, 1)
    assert (row["documents"], row["dropped_documents"]) == (2, 1)
    assert report["tokens_after"] == report["tokens_before"] - int(corpus.tokens.lengths[1])
    assert "1 of 3 samples have fewer than 13 words and are not looked for; lower --ngram" in caplog.text
    assert run(corpus, tokenizer, [tmp_path / "b.jsonl"], tmp_path / "clean", min_coverage=0.1)[2].ids.tolist() == [
        0,
        3,
    ]
    assert (
        run(corpus, tokenizer, [tmp_path / "b.jsonl"], tmp_path / "clean", ngram=8, fields=("question",))[0]["ngrams"]
        == 22
    )


def test_boilerplate_is_not_looked_for(corpus, tokenizer, tmp_path, caplog):
    """An instruction behind each question, which the corpus has too."""
    rows = [{"text": f"{QUESTION if i == 4 else f'{i} ' * 20} {FILLER}"} for i in range(5)]
    path = write_lines(tmp_path / "b.jsonl", rows)
    with pytest.raises(UserError, match="every document overlaps"):
        run(corpus, tokenizer, [path], tmp_path / "a", min_coverage=0.05, ignore_in_samples=5)
    report, _, listed = run(corpus, tokenizer, [path], tmp_path / "b", ignore_in_samples=4)
    assert listed.ids.tolist() == [0, 2, 3] and report["against"][0]["all_ngrams_common"] == 0
    same = write_lines(tmp_path / "same.jsonl", [{"text": OTHER}] * 5 + [{"text": QUESTION}])
    report, _, listed = run(corpus, tokenizer, [same], tmp_path / "c", ignore_in_samples=4)
    assert report["against"][0]["all_ngrams_common"] == 5
    assert "5 of 6 samples share all their n-grams with over 4 others and are not looked for" in caplog.text


def test_the_list_is_taken_by_resampling(corpus, tokenizer, tmp_path):
    path = tmp_path / "samples" / "task" / "64.jsonl"
    sample = Sample(
        task="task", index=0, input=QUESTION, outputs=("ninety", "90"), length=64, max_new_tokens=8, prompt_tokens=9
    )
    write_samples(path, [sample])
    (tmp_path / "samples" / "made.json").write_text('{"format": 1}')
    report = run(corpus, tokenizer, [tmp_path / "samples"], tmp_path / "clean")[0]
    assert [row["file"] for row in report["against"]] == [str(path)]
    clean = read_documents(tmp_path / "clean", corpus)
    assert clean.ids.tolist() == [0, 2, 3] and clean.made_by["decontaminated"]["ngram"] == 13
    policy = LengthPolicy(short_below=(1,), keep_short=(1.0,), long_above=60)
    report = write_resampled(corpus, tmp_path / "resampled", policy, None, 1, clean)
    listed = read_documents(tmp_path / "resampled", corpus)
    assert set(listed.ids.tolist()) <= {0, 2, 3} and report["documents_before"] == 3
    assert listed.made_by["documents"] == clean.made_by
    assert report["tokens_before"] == int(corpus.tokens.lengths[[0, 2, 3]].sum())


def test_an_earlier_list_is_no_evaluation_file(corpus, tokenizer, tmp_path):
    (tmp_path / "samples").mkdir()
    write_lines(tmp_path / "samples" / "clean.json", [{"text": QUESTION}])
    first = run(corpus, tokenizer, [tmp_path / "samples"], tmp_path / "samples" / "clean")[0]
    assert run(corpus, tokenizer, [tmp_path / "samples"], tmp_path / "samples" / "clean")[0] == first
    with pytest.raises(UserError, match="--against: names no evaluation file"):
        run(corpus, tokenizer, [tmp_path / "samples" / "clean"], tmp_path / "samples" / "clean")
    with pytest.raises(UserError, match="--against: names no file"):
        run(corpus, tokenizer, [], tmp_path / "clean")


def test_chats_and_other_files(tokenizer, tmp_path):
    chats = [
        {"messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "ninety"}]},
        {"messages": [{"role": "user", "content": FILLER}, {"role": "assistant", "content": "indeed"}]},
    ]
    tokenize_corpus([write_lines(tmp_path / "in.jsonl", chats)], tmp_path / "c", tokenizer, Fields())
    corpus = open_corpus(tmp_path / "c")
    (tmp_path / "b.txt").write_text(QUESTION)
    (tmp_path / "b.json").write_text(json.dumps([{"messages": chats[0]["messages"]}], indent=1))
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(
        pyarrow.table({"id": [1], "question": [QUESTION], "none": [None]}), tmp_path / "b.parquet"
    )
    for name in ("b.txt", "b.json", "b.parquet"):
        assert run(corpus, tokenizer, [tmp_path / name], tmp_path / "clean")[2].ids.tolist() == [1], name


def test_mistakes_are_one_sentence(corpus, tokenizer, tmp_path):
    path = write_lines(tmp_path / "b.jsonl", [{"question": QUESTION}])
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "x"}\n{"question"\n')
    for files, options, sentence in (
        ([path], {"ngram": 0}, r"--ngram 0: is no number of words"),
        ([path], {"min_coverage": 0.0}, r"--min-coverage 0.0: is no share"),
        ([path], {"ignore_in_samples": 0}, r"--ignore-in-samples 0: leaves no n-gram"),
        ([path], {"ngram": 99}, r"--against: no sample has 99 words or more; lower --ngram"),
        ([path], {"fields": ("text",)}, r"b\.jsonl, line 1: has no field 'text' \(its fields: question\)"),
        ([bad], {}, r"bad\.jsonl, line 2: is not JSON"),
        ([tmp_path / "none.jsonl"], {}, r"none\.jsonl"),
    ):
        with pytest.raises(UserError, match=sentence):
            run(corpus, tokenizer, files, tmp_path / "clean", **options)
    everything = write_lines(tmp_path / "all.jsonl", [{"text": FILLER}])
    with pytest.raises(UserError, match=r"every document overlaps; raise --min-coverage above 0.5"):
        run(corpus, tokenizer, [everything], tmp_path / "clean")
    assert not (tmp_path / "clean").exists()
    (tmp_path / "clean").mkdir()
    (tmp_path / "clean" / "mine").touch()
    with pytest.raises(UserError, match=r"--output: .*clean holds mine"):
        run(corpus, tokenizer, [path], tmp_path / "clean")
