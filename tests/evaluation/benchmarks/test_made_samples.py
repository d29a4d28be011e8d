"""Samples of every task made from files in the published formats: exact, in both forms, read back, copiers right."""

import json

import pytest

from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.benchmarks import graphwalks
from megatron_ultralong.evaluation.registry import MakeOptions, family_tasks, find_task
from megatron_ultralong.evaluation.rendering import prompt_ids, rendered
from megatron_ultralong.evaluation.samples import TooShortError, read_samples, write_samples
from tests.evaluation.benchmarks import published

TASKS = [task for family in (*published.WRITERS, "graphwalks") for task in family_tasks(family)]
LENGTHS = (5000, 3500)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: write(tmp_path_factory.mktemp(name) / "data") for name, write in published.WRITERS.items()}


def lengths_of(task):
    """Two that suit its made-up data."""
    if task.name.endswith("math_calc"):
        return 33000, 31000
    return {"babilong": (700, 4000), "mrcr": (5000, 4000)}.get(task.name.partition("/")[0], LENGTHS)


def options(tokenizer, folders, task, **changes):
    data = folders.get(task.name.partition("/")[0])
    return MakeOptions(**({"tokenizer": tokenizer, "lengths": LENGTHS, "count": 2, "data": data} | changes))


@pytest.mark.parametrize("form", ["base", "chat"])
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_samples(task, form, tokenizer, folders, tmp_path):
    lengths = lengths_of(task)
    samples = list(task.make(options(tokenizer, folders, task, form=form, lengths=lengths)))
    assert samples and {sample.length for sample in samples} <= set(lengths)
    for sample in samples:
        ids = prompt_ids(rendered(sample, form, tokenizer), form, tokenizer)
        assert len(ids) == sample.prompt_tokens <= sample.length - sample.max_new_tokens
        assert (sample.task, sample.form, sample.max_new_tokens) == (task.name, form, task.budget)
        if sample.place:
            assert sample.input[slice(*sample.place)] == sample.outputs[0]
        assert "{" not in sample.input.replace(published.PASSAGE, "") or "kv" in task.name
        assert sample.extra["prompts"]
    write_samples(tmp_path / "samples.jsonl", samples)
    assert list(read_samples(tmp_path / "samples.jsonl")) == samples


COPIES = {
    "longbench_v2": "The correct answer is (B).",
    "infinitebench/math_calc": "[0, 1, 3]",
    "infinitebench/longbook_choice_eng": "B",
    "infinitebench/code_debug": "B. g",
    "babilong/qa7": "two",
}


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_copier_is_right(task, tokenizer, folders):
    for sample in task.make(options(tokenizer, folders, task, lengths=lengths_of(task)[:1], form="chat")):
        copy = COPIES.get(task.name, sample.outputs[0])
        if task.name.startswith("graphwalks"):
            copy = f"Let me see.\nFinal Answer: [{', '.join(sample.outputs)}]"
        assert task.score(copy, sample) == pytest.approx(1, abs=1e-8)
        assert task.score("", sample) == 0


def test_prompts_too_long_are_cut_and_the_lost_answer_is_said(tokenizer, folders, caplog):
    task = find_task("infinitebench/passkey")
    found = list(task.make(options(tokenizer, folders, task, lengths=(500,))))
    assert all(sample.extra["cut_tokens"] > 500 and sample.extra["evidence"] == "cut away" for sample in found)
    assert "infinitebench/passkey at 500 tokens: the cut took the answer out of 2 samples" in caplog.text
    whole = list(task.make(options(tokenizer, folders, task, lengths=(5000,))))
    assert [sample.depth for sample in whole] == pytest.approx([0.5, 0.5], abs=0.03)


def test_lveval_keeps_500_tokens_free(tokenizer, folders):
    task = find_task("lveval/hotpotwikiqa_mixup_16k")
    (first, _) = task.make(options(tokenizer, folders, task, lengths=(1500,)))
    assert 998 <= first.prompt_tokens - len(tokenizer.encode(first.answer_prefix)) <= 1000
    assert first.extra["parts"] == ["16k"] and first.extra["keywords"] == "rain"


def test_all_levels_of_a_set(tokenizer, folders):
    task = find_task("lveval/cmrc_mixup")
    found = list(task.make(options(tokenizer, folders, task, lengths=(2000,), count=9)))
    assert [sample.extra["parts"] for sample in found] == [["16k"], ["16k"], ["32k"], ["32k"]]
    assert [sample.index for sample in found] == [0, 1, 2, 3]


def test_whole_prompts_belong_to_the_length_that_they_take_more_than_half_of(tokenizer, folders, caplog):
    caplog.set_level("INFO")
    task = find_task("babilong/qa1")
    found = list(task.make(options(tokenizer, folders, task, lengths=(700, 4000), count=9)))
    assert [(sample.length, sample.index, *sample.extra["parts"]) for sample in found] == [
        (700, 0, "0k"), (700, 1, "0k"), (4000, 0, "1k"),
    ]  # fmt: skip
    assert "babilong/qa1 at 700 tokens: 1 rows are of other lengths, 2 of this one" in caplog.text
    part = list(task.make(options(tokenizer, folders, task, lengths=(700,), count=9, only=range(1, 2))))
    assert part == [found[1]]
    with pytest.raises(
        TooShortError, match=r"no row takes between 50 and 100 tokens with its answer: they take \d+ to"
    ):
        list(task.make(options(tokenizer, folders, task, lengths=(100,))))


def test_mrcr_in_chat_form_has_the_turns_before(tokenizer, folders):
    task = find_task("mrcr/4needle")
    (chat, _) = task.make(options(tokenizer, folders, task, lengths=(5000,), form="chat"))
    assert len(chat.turns) == 12 and chat.turns[1]["role"] == "assistant"
    assert rendered(chat, "chat", tokenizer).count("<|start_header_id|>") == 14
    (base, _) = task.make(options(tokenizer, folders, task, lengths=(5000,), form="base"))
    assert base.turns == () and base.input.startswith("User: write a poem about 0\n\nAssistant: The rain")


@pytest.mark.parametrize("name", ["graphwalks/bfs", "graphwalks/parents"])
@pytest.mark.parametrize("length", [2600, 9000])
def test_graphs_fill_the_length_and_the_answer_is_the_graphs(name, length, tokenizer):
    samples = list(find_task(name).make(MakeOptions(tokenizer=tokenizer, lengths=(length,), count=3)))
    for sample in samples:
        assert length - 40 <= sample.prompt_tokens + sample.max_new_tokens <= length
        lines = sample.input.partition("The graph:\n")[2].partition("Question:")[0].split("\n")
        edges = [tuple(line.split(" -> ")) for line in lines if line]
        assert len(edges) == len(set(edges)) == sample.extra["edges"] and all(a != b for a, b in edges)
        words = sample.extra["question"].replace("?", "").replace(",", "").split()
        if name.endswith("bfs"):
            expected = slow_search(edges, words[5], int(words[7]))
        else:
            expected = {a for a, b in edges if b == words[-1]}
        assert set(sample.outputs) == expected and 1 <= len(expected) <= graphwalks.MOST
    parts = [MakeOptions(tokenizer=tokenizer, lengths=(length,), count=3, only=range(i, i + 1)) for i in range(3)]
    assert [sample for part in parts for sample in find_task(name).make(part)] == samples
    assert len({sample.input for sample in samples}) == 3


def slow_search(edges, start, depth):
    """Nodes at a distance, by relaxing every edge over and over."""
    distance = {start: 0}
    for _ in range(depth):
        for a, b in edges:
            if a in distance:
                distance[b] = min(distance.get(b, depth + 1), distance[a] + 1)
    for _ in range(depth):
        for a, b in edges:
            if a in distance:
                distance[b] = min(distance.get(b, depth + 1), distance[a] + 1)
    return {node for node, steps in distance.items() if steps == depth}


def test_a_length_too_short_for_a_graph_is_said(tokenizer):
    with pytest.raises(TooShortError, match=r"graphwalks/bfs: a length of 1500 tokens is too short.*ask for at least"):
        list(find_task("graphwalks/bfs").make(MakeOptions(tokenizer=tokenizer, lengths=(1500,), count=1)))


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        (
            "infinitebench/math_find",
            "input",
            "What now?",
            r"line 1: 'input' is 'What now\?', and not a question such as",
        ),
        ("infinitebench/code_run", "input", "f(2)", "and not a question about a call"),
        ("infinitebench/code_debug", "options", ["f", "g"], "'options' is .*and not a list of four"),
        ("infinitebench/code_debug", "answer", ["z"], "'answer' is .*and not one of the four options"),
        ("infinitebench/code_run", "answer", ["seven"], "and not a number or a list of numbers"),
        ("infinitebench/passkey", "answer", {}, "and not a text, a number or a list of them"),
        ("infinitebench/passkey", "context", None, "the field 'context' is missing"),
        ("lveval/factrecall_en", "answers", [], "'answers' is .*and not a text or a list of texts"),
        ("lveval/factrecall_en", "answer_keywords", 5, "'answer_keywords' is 5, and not a text"),
        ("longbench_v2", "answer", "E", "'answer' is 'E', and not one of the letters"),
        ("mrcr/2needle", "prompt", "hello", "'prompt' is 'hello', and not the JSON of a chat"),
        ("mrcr/2needle", "random_string_to_prepend", "", "and not the word that answers begin with"),
    ],
)
def test_a_broken_row_is_one_sentence(name, field, value, message, tokenizer, folders, tmp_path):
    family, _, task = name.partition("/")
    source = {"infinitebench": f"{task}.jsonl", "lveval": f"{task}_16k.jsonl", "mrcr": f"{task}.jsonl"}
    path = folders[family] / source.get(family, "data.json")
    text = path.read_text().splitlines()[0]
    row = json.loads(text) if family != "longbench_v2" else json.loads(path.read_text())[0]
    changed = {**row, field: value} if value is not None else {key: row[key] for key in row if key != field}
    broken = tmp_path / "broken_16k.jsonl"
    broken.write_text(json.dumps(changed))
    with pytest.raises(UserError, match=message):
        list(find_task(name).make(MakeOptions(tokenizer=tokenizer, lengths=(5000,), count=2, data=broken)))


@pytest.mark.parametrize("family", published.WRITERS)
def test_no_data_is_said(family, tokenizer, tmp_path):
    task = family_tasks(family)[0]
    with pytest.raises(UserError, match="made from the benchmark's data; name the file or folder by --data"):
        list(task.make(MakeOptions(tokenizer=tokenizer, lengths=(5000,), count=2)))
    with pytest.raises(UserError, match=r"no file in it is called|cannot be read"):
        list(task.make(MakeOptions(tokenizer=tokenizer, lengths=(5000,), count=2, data=tmp_path)))
