"""The adapter inside the real lm-evaluation-harness, on local task files, against its own transformers model."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong.data.tokenizer.chat import ChatTokenizer
from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.backends.hf_backend import HFBackend
from megatron_ultralong.evaluation.short import harness_run
from megatron_ultralong.evaluation.short.harness_run import ShortRequest, run_short
from megatron_ultralong.evaluation.short.short_recipes import RECIPES
from tests.evaluation.conftest import save_model

CHOICE = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/questions.jsonl, train: {folder}/questions.jsonl}}}}
output_type: multiple_choice
test_split: test
fewshot_split: train
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: right
num_fewshot: 1
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
ANSWER = """
task: tiny_answer
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/questions.jsonl}}}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[right]}}}}"
generation_kwargs: {{until: ["\\n", "."], max_gen_toks: {budget}, do_sample: {sample}}}
metric_list: [{{metric: exact_match}}]
"""
TEXT = """
task: tiny_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/texts.jsonl}}}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: byte_perplexity}}]
"""


@pytest.fixture(scope="module")
def include(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    pytest.importorskip("lm_eval", reason="short tasks need lm-evaluation-harness: pip install lm_eval[math]")
    folder = tmp_path_factory.mktemp("tasks")
    with (folder / "questions.jsonl").open("w") as stream:
        for number in range(6):
            key = str(70_000 + 137 * number)
            text = f"The red key is {key}. {texts[0][number * 30 : number * 30 + 60]} What is the red key?"
            choices = [key, "none", "the blue one"]
            stream.write(json.dumps({"question": text, "choices": choices, "right": number % 3}) + "\n")
    with (folder / "texts.jsonl").open("w") as stream:
        for length in (40, 900):  # the second is longer than the context
            stream.write(json.dumps({"text": texts[1][:length]}) + "\n")
    (folder / "choice.yaml").write_text(CHOICE.format(folder=folder))
    (folder / "answer.yaml").write_text(ANSWER.format(folder=folder, budget=12, sample="false"))
    (folder / "text.yaml").write_text(TEXT.format(folder=folder))
    for name, budget, sample in (("greedy_budget", 4000, "false"), ("drawn", 12, "true")):
        text = ANSWER.format(folder=folder, budget=budget, sample=sample).replace("tiny_answer", name)
        (folder / f"{name}.yaml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A model whose end of text is its tokenizer's, as the harness assumes."""
    return save_model(tmp_path_factory.mktemp("short") / "model", tokenizer_folder, seed=0, eos_token_id=4)


TASKS = ("tiny_choice", "tiny_answer", "tiny_text")


@pytest.fixture
def backend(model_folder: Path, tokenizer: ChatTokenizer) -> HFBackend:
    return HFBackend(model_folder, tokenizer)


def ask(backend: HFBackend, tokenizer: ChatTokenizer, output: Path, include: Path, tasks: Sequence[str]) -> Any:
    request = ShortRequest(task=tuple(tasks), include=include)
    return run_short(request, backend, tokenizer, output, "Tiny", "model")


def test_answers_are_those_of_the_harness_own_model(
    backend: HFBackend, tokenizer: ChatTokenizer, model_folder: Path, include: Path, tmp_path: Path
) -> None:
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    # one token less: it does not count the last one of a window, which no backend would read beyond the context
    theirs = HFLM(pretrained=str(model_folder), dtype="float32", batch_size=1, device="cpu", max_length=191)
    manager = harness_run._manager(include)
    expected = lm_eval.simple_evaluate(
        model=theirs, tasks=list(TASKS), task_manager=manager, bootstrap_iters=0, log_samples=True
    )
    ask(backend, tokenizer, tmp_path / "run", include, TASKS)
    found = json.loads((tmp_path / "run" / "lm_eval.json").read_text())
    for task in TASKS:
        ours, own = found[task]["results"][task], expected["results"][task]
        for metric, value in own.items():
            if "," in metric and isinstance(value, float):
                assert ours[metric] == pytest.approx(value, rel=1e-5), (task, metric)
    said = [json.loads(line)["answer"] for line in (tmp_path / "run" / "answers.jsonl").read_text().splitlines()]
    texts = {sample["resps"][0][0] for sample in expected["samples"]["tiny_answer"]}
    assert texts == {answer for answer in said if isinstance(answer, str)}
    rolling = [sample["resps"][0][0] for sample in expected["samples"]["tiny_text"]]
    assert [answer for answer in said if isinstance(answer, float)] == pytest.approx(rolling, rel=1e-5)


def test_rows_and_going_on(backend: HFBackend, tokenizer: ChatTokenizer, include: Path, tmp_path: Path) -> None:
    """The second time nothing is asked, whatever was torn off the file is."""
    first = ask(backend, tokenizer, tmp_path / "run", include, TASKS)
    assert [row["task"] for row in first["short"]] == ["short/tiny_choice", "short/tiny_answer", "short/tiny_text"]
    assert [(row["metric"], row["samples"]) for row in first["short"]] == [
        ("acc,none", 6),
        ("exact_match,none", 6),
        ("byte_perplexity,none", 2),
    ]
    path = tmp_path / "run" / "answers.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    asked = []
    for name in ("judge", "generate", "losses"):
        made = getattr(backend, name)
        setattr(backend, name, lambda *words, made=made, name=name: asked.append(name) or made(*words))
    assert ask(backend, tokenizer, tmp_path / "run", include, TASKS) == first
    assert set(asked) == {"losses"}
    assert len(path.read_bytes().splitlines()) == len(whole.splitlines())


def test_what_cannot_be_asked(backend: HFBackend, tokenizer: ChatTokenizer, include: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="budget of 4,000 tokens leaves no room for a prompt"):
        ask(backend, tokenizer, tmp_path / "a", include, ["greedy_budget"])
    with pytest.raises(UserError, match=r"draws its answers at random \(do_sample\), and backends are greedy"):
        ask(backend, tokenizer, tmp_path / "b", include, ["drawn"])
    with pytest.raises(UserError, match="--task no_such_task: lm-evaluation-harness cannot ask it"):
        ask(backend, tokenizer, tmp_path / "c", include, ["no_such_task"])


def test_the_papers_recipe_exists_in_the_harness(include: Path) -> None:
    known = set(harness_run._manager(include).all_tasks)
    for task in RECIPES["paper"]:
        assert {task.task, task.chat_task or task.task} <= known
    assert [(task.label, task.shots) for task in RECIPES["paper"]] == [
        ("MMLU", 5),
        ("MMLU-Pro", 5),
        ("MATH", 0),
        ("GSM8K", 8),
        ("HumanEval", 0),
    ]


def test_code_is_executed_only_where_that_is_allowed() -> None:
    assert "humaneval" not in [task.task for task in ShortRequest().tasks()]
    assert [task.task for task in ShortRequest().left_out()] == ["humaneval"]
    allowed = ShortRequest(run_generated_code=True, chat=True)
    assert allowed.name_of(allowed.tasks()[-1]) == "humaneval_instruct"
    assert allowed.left_out() == []
