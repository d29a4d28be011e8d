import pytest

from megatron_ultralong.evaluation.benchmarks.counting import Counter
from megatron_ultralong.evaluation.plain_tokenizer import tokenizer_of
from megatron_ultralong.evaluation.rendering import prompt_ids, rendered
from megatron_ultralong.evaluation.samples import Sample
from tests.data.tokenizer.shapes import build, reference

SHAPES = ("llama3", "qwen2", "llama2", "mistral-first", "gemma", "unigram", "sentencepiece-bpe", "tiktoken", "bytes")


@pytest.mark.parametrize("name", SHAPES)
def test_counts_are_those_of_the_definition(name, tmp_path, texts):
    path = build(name, tmp_path / name)
    tokenizer, ids = tokenizer_of(path, "base"), reference(path)
    counter = Counter(tokenizer)
    long = "\n".join(texts)
    assert counter.count(long) == len(ids(long))
    assert counter.each([long[:100], "", " word"]).tolist() == [len(ids(text)) for text in (long[:100], "", " word")]
    assert counter.each([]).tolist() == []
    sample = Sample(task="", index=0, input=long[:500], outputs=(), length=0, max_new_tokens=0, prompt_tokens=0)
    assert counter.prompt(sample) == len(prompt_ids(rendered(sample, "base", tokenizer), "base", tokenizer))


def test_a_chat_counts_its_template(tokenizer):
    given = {"task": "", "index": 0, "outputs": (), "length": 0, "max_new_tokens": 0, "prompt_tokens": 0}
    sample = Sample(input="Which key?", answer_prefix="The red", form="chat", **given)
    ids = prompt_ids(rendered(sample, "chat", tokenizer), "chat", tokenizer)
    assert Counter(tokenizer).prompt(sample) == len(ids) > len(tokenizer.encode("Which key?The red")) + 4
