"""Samples on every shape of tokenizer and template: rendered as transformers does, judged on the answer's tokens."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import shutil
from pathlib import Path

import pytest

from megatron_ultralong.data.tokenizer.chat import ChatTokenizer
from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.backends.interface import Forced
from megatron_ultralong.evaluation.benchmarks.haystack import Haystack
from megatron_ultralong.evaluation.benchmarks.retrieval import count_tokens, recall_conversation
from megatron_ultralong.evaluation.registry import MakeOptions, find_task
from megatron_ultralong.evaluation.rendering import forced_prompt, generation_prompt
from megatron_ultralong.evaluation.samples import Sample
from tests.data.tokenizer.shapes import build
from tests.data.tokenizer.templates import with_template
from tests.data.tokenizer.test_chat_matrix import SHAPES


def samples(
    tokenizer: ChatTokenizer, folder: Path, texts: list[str], *lengths: int, lead_in: bool = False
) -> list[Sample]:
    """Needles at three depths of each length, as chats."""
    (folder / "haystack.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    given = {"tokenizer": tokenizer, "haystack": folder / "haystack.jsonl", "lead_in": lead_in}
    options = MakeOptions(lengths=lengths, count=1, form="chat", depths=3, **given)  # type: ignore[arg-type]
    make = find_task("needles").make
    assert make is not None
    return list(make(options))


def judged(tokenizer: ChatTokenizer, sample: Sample) -> str:
    """Hold a sample's ids against transformers' own of the whole chat; returns what the judged tokens spell."""
    hf = tokenizer.template._hf
    answer = f"{sample.answer_prefix}{sample.lead_in}{sample.outputs[0]}."
    chat = [{"role": "user", "content": sample.input}, {"role": "assistant", "content": answer}]
    whole = hf.apply_chat_template(chat, return_dict=False)
    forced = forced_prompt(sample, "chat", tokenizer)
    ((first, last),) = forced.answers
    ids = [int(token) for token in forced.ids]
    assert last == len(ids) and ids[: last - 1] == whole[: last - 1]
    spelt = "".join(hf.convert_ids_to_tokens(ids[first:last]))
    return re.sub("<0x(..)>", lambda byte: chr(int(byte[1], 16)), spelt)


@pytest.mark.parametrize("shape", SHAPES)
def test_only_answers_are_judged_and_lengths_are_kept(shape: str, tmp_path: Path, texts: list[str]) -> None:
    tokenizer = ChatTokenizer(with_template(build(shape, tmp_path / "shape"), "chatml"))
    for sample in samples(tokenizer, tmp_path, texts, 500, 2000):
        assert judged(tokenizer, sample).strip("\u2581\u0120.") == sample.outputs[0]
        assert sample.length - 64 <= sample.prompt_tokens + sample.max_new_tokens <= sample.length
    haystack, rng = Haystack(texts, tokenizer), random.Random(shape)
    for _ in range(3):
        chat = recall_conversation(rng, haystack, tokenizer, max_tokens=700, facts=3, filler_tokens=300, questions=3)
        assert count_tokens(tokenizer, chat) <= 700


@pytest.mark.parametrize("lead_in", [False, True])
@pytest.mark.parametrize(
    "shape, template",
    [("llama2", "llama-2"), ("llama2-prepend", "mistral"), ("mistral-first", "llama-2"), ("qwen2", "qwen3")],
)
def test_what_a_template_writes_before_answers_is_there(
    shape: str, template: str, lead_in: bool, tmp_path: Path, texts: list[str]
) -> None:
    """`[/INST] 48213` and an empty thought are read as in the rendered chat, whose ids `judged` compares."""
    tokenizer = ChatTokenizer(with_template(build(shape, tmp_path / "shape"), template))
    assert tokenizer.answer_gap.strip() == ("<think>\n\n</think>" if template == "qwen3" else "")
    assert tokenizer.answer_gap
    for sample in samples(tokenizer, tmp_path, texts, 500, lead_in=lead_in):
        assert sample.answer_prefix.startswith("The ") == lead_in
        assert judged(tokenizer, sample).strip("\u2581\u0120.") == sample.outputs[0]
        assert sample.prompt_tokens + sample.max_new_tokens <= sample.length


def test_a_reference_without_tokens_is_refused(tmp_path: Path, tokenizer_folder: Path, texts: list[str]) -> None:
    folder = Path(shutil.copytree(tokenizer_folder, tmp_path / "dropping"))
    sample = samples(ChatTokenizer(folder), tmp_path, texts, 300)[0]
    path = folder / "tokenizer.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    whole["normalizer"] = {"type": "Replace", "pattern": {"Regex": "[0-9]"}, "content": ""}
    path.write_text(json.dumps(whole, ensure_ascii=False), encoding="utf-8")
    tokenizer = ChatTokenizer(folder)
    with pytest.raises(UserError, match=f"the tokenizer drops '{sample.outputs[0]}'"):
        forced_prompt(sample, "chat", tokenizer)
    with pytest.raises(UserError, match="index 0: its reference is empty; mend 'outputs'"):
        forced_prompt(dataclasses.replace(sample, outputs=("",)), "chat", tokenizer)
    bare = dataclasses.replace(sample, input="", lead_in="", answer_prefix="", outputs=("red",))
    with pytest.raises(UserError, match="index 0: no token stands before its reference; mend 'input'"):
        forced_prompt(bare, "base", tokenizer)
    with pytest.raises(UserError, match="index 0: its prompt has no token; mend 'input'"):
        generation_prompt(bare, "base", tokenizer)


@pytest.mark.parametrize("answers", [((3, 3),), ((0, 2),), ((1, 2), (4, 6))])
def test_an_empty_answer_is_never_judged(answers: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ValueError, match="answers has the range"):
        Forced([1, 2, 3, 4, 5], answers)


def test_a_token_across_the_border_is_judged_whole(tmp_path: Path, texts: list[str]) -> None:
    folder = with_template(build("mistral-first", tmp_path / "shape"), "chatml")
    path = folder / "tokenizer.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    vocab, new = whole["model"]["vocab"], max(entry["id"] for entry in whole["added_tokens"]) + 1
    for digit in "0123456789":
        vocab.setdefault(digit, new + len(vocab))
        vocab.setdefault(f"\u2581{digit}", new + len(vocab))
        whole["model"]["merges"] += [["\u2581", digit]]
    path.write_text(json.dumps(whole, ensure_ascii=False), encoding="utf-8")
    tokenizer = ChatTokenizer(folder)
    sample = samples(tokenizer, tmp_path, texts, 300)[0]
    assert judged(tokenizer, sample) == f"\u2581{sample.outputs[0]}"
