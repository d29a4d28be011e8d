import torch

from megatron_ultralong.data.tokenizer.chat import ChatTokenizer
from megatron_ultralong.evaluation.backends.hf import LanguageModel
from megatron_ultralong.evaluation.benchmarks.haystack import Haystack
from megatron_ultralong.evaluation.benchmarks.scoring import Prompt
from megatron_ultralong.evaluation.benchmarks.tasks import (
    Cell,
    depth_grid,
    passkey_cells,
    passkey_rows,
    recall_prompts,
    recall_score,
)


def test_depth_grid() -> None:
    assert depth_grid(1) == [0.5]
    assert depth_grid(3) == [0.0, 0.5, 1.0]
    assert [round(100 * depth) for depth in depth_grid(10)] == [0, 11, 22, 33, 44, 56, 67, 78, 89, 100]


def test_prompts_depend_only_on_seed_length_depth_and_number(haystack: Haystack, tokenizer: ChatTokenizer) -> None:
    few = passkey_cells(haystack, tokenizer, lengths=[96], depths=[0.5], samples=2, seed=3)
    many = passkey_cells(haystack, tokenizer, lengths=[80, 96], depths=[0.0, 0.5], samples=3, seed=3)
    other = passkey_cells(haystack, tokenizer, lengths=[96], depths=[0.5], samples=2, seed=4)
    assert [(cell.length, cell.depth) for cell in many] == [(80, 0.0), (80, 0.5), (96, 0.0), (96, 0.5)]
    assert few[0].prompts == many[3].prompts[:2]
    assert few[0].prompts != other[0].prompts
    assert all(len(prompt.ids) <= cell.length for cell in many for prompt in cell.prompts)


def test_rows_are_the_share_of_right_answers(model: LanguageModel) -> None:
    ids = list(range(20, 40))
    hidden = model.hidden(torch.tensor([ids]))
    best = int(model.logits(hidden[0, -1:]).argmax())
    right, wrong = (Prompt([*ids, token], ((20, 21),)) for token in (best, (best + 1) % 512))
    cells = [Cell(64, 0.0, [right, wrong, wrong, wrong]), Cell(64, 1.0, [right] * 4)]
    assert passkey_rows(model, cells, "test") == [
        {"length": 64, "depth": 0.0, "score": 0.25, "samples": 4},
        {"length": 64, "depth": 1.0, "score": 1.0, "samples": 4},
    ]
    assert recall_score(model, [right, right, right, wrong], "test") == 0.75


def test_the_short_task_judges_every_question(haystack: Haystack, tokenizer: ChatTokenizer) -> None:
    prompts = recall_prompts(haystack, tokenizer, length=192, facts=3, samples=5, seed=0)
    assert [len(prompt.answers) for prompt in prompts] == [3] * 5
    assert prompts == recall_prompts(haystack, tokenizer, length=192, facts=3, samples=5, seed=0)
    assert all(160 < len(prompt.ids) <= 192 for prompt in prompts)
