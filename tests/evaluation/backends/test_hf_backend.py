from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

from megatron_ultralong.data.tokenizer.chat import ChatTokenizer
from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.backends.hf_backend import HFBackend
from megatron_ultralong.evaluation.backends.interface import Answer, Forced, Judged, Prompt


def reference(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, dtype=torch.float32).eval()


def greedy(model: torch.nn.Module, ids: list[int], count: int) -> list[int]:
    """transformers' own."""
    text = torch.tensor([ids])
    found = model.generate(text, attention_mask=torch.ones_like(text), max_new_tokens=count, do_sample=False)
    return found[0, len(ids) :].tolist()


def draw(count: int, seed: int) -> list[int]:
    return torch.randint(5, 512, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture(scope="module", params=["llama", "mistral with a window"])
def folder(request: pytest.FixtureRequest, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "llama":
        return model_folder
    path = tmp_path_factory.mktemp("mistral") / "model"
    torch.manual_seed(3)
    config = MistralConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=192,
        sliding_window=24,
        initializer_range=0.3,
    )
    MistralForCausalLM(config).save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).write_bytes((model_folder / name).read_bytes())
    return path


@pytest.fixture(params=[16, 8192])
def backend(request: pytest.FixtureRequest, folder: Path, tokenizer: ChatTokenizer) -> Iterator[HFBackend]:
    made = HFBackend(folder, tokenizer, chunk=request.param)
    yield made
    made.close()


def test_generation_is_that_of_transformers(backend: HFBackend, folder: Path) -> None:
    shared = draw(60, 0)
    texts = [draw(100, 1), shared + draw(5, 2), shared + draw(20, 3), shared, draw(3, 4), shared[:30]]
    model = reference(folder)
    found = dict(backend.generate([Prompt("", ids, 12) for ids in texts]))
    for index, ids in enumerate(texts):
        answer = found[index]
        assert isinstance(answer, Answer)
        assert list(answer.ids) == greedy(model, ids, 12)
        assert answer.finished == (answer.ids[-1] in backend._ends)


def test_what_texts_share_is_read_once(model_folder: Path, tokenizer: ChatTokenizer) -> None:
    backend = HFBackend(model_folder, tokenizer)
    shared = draw(100, 5)
    read = []
    hidden = backend.model.hidden

    def counting(tokens_BS: torch.Tensor, cache: object = None) -> torch.Tensor:
        read.append(tokens_BS.numel())
        return hidden(tokens_BS, cache)

    backend.model.hidden = counting  # type: ignore[method-assign]
    list(backend.generate([Prompt("", shared + [10 + number], 1) for number in range(4)]))
    assert read == [101, 1, 1, 1]


def test_judging_agrees_with_generating(backend: HFBackend, folder: Path) -> None:
    """The model's own greedy answer is judged right; changed in one place it is not; log-likelihoods are the sums."""
    model = reference(folder)
    forced = []
    for seed, length in enumerate([10, 90, 40]):
        ids = draw(length, 20 + seed)
        answer = greedy(model, ids, 6)
        wrong = answer[:3] + [(answer[3] + 1) % 512] + answer[4:]
        for tail in (answer, wrong):
            forced.append(Forced(ids + tail, ((length, length + 2), (length + 2, length + len(tail)))))
    found = dict(backend.judge(forced))
    for index, prompt in enumerate(forced):
        judged = found[index]
        assert isinstance(judged, Judged)
        assert judged.greedy == (True, index % 2 == 0)
        text = torch.tensor(prompt.ids)
        losses = F.cross_entropy(model(text[None]).logits[0, :-1], text[1:], reduction="none")
        expected = [-float(losses.detach()[first - 1 : last - 1].sum()) for first, last in prompt.answers]
        assert judged.log_likelihood == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("start", [1, 2, 17, 100, 119])
def test_losses_are_the_models(backend: HFBackend, folder: Path, start: int) -> None:
    ids = draw(120, 30)
    text = torch.tensor(ids)
    losses = F.cross_entropy(reference(folder)(text[None]).logits[0, :-1], text[1:], reduction="none")
    found = backend.losses(np.array(ids), start)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, losses[start - 1 :].detach().numpy(), rtol=1e-4, atol=1e-5)


def test_a_stop_text_ends_the_answer_and_is_no_part_of_it(model_folder: Path, tokenizer: ChatTokenizer) -> None:
    backend = HFBackend(model_folder, tokenizer)
    ids = draw(50, 40)
    ((_, whole),) = backend.generate([Prompt("", ids, 20)])
    assert isinstance(whole, Answer)
    stop = whole.text[len(whole.text) // 2 :][:4]
    ((_, cut),) = backend.generate([Prompt("", ids, 20, stop=(stop, "never said"))])
    assert isinstance(cut, Answer)
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finished
    assert len(cut.ids) < len(whole.ids)


def test_too_long_a_text_is_refused_unless_it_is_wanted(model_folder: Path, tokenizer: ChatTokenizer) -> None:
    backend = HFBackend(model_folder, tokenizer)
    with pytest.raises(UserError, match=r"193 tokens with its answer is longer than the model's context of 192"):
        next(backend.generate([Prompt("", draw(183, 1), 10)]))
    with pytest.raises(UserError, match="longer than the model's context"):
        backend.losses(draw(193, 1))
    past = HFBackend(model_folder, tokenizer, past_context=True)
    ((_, answer),) = past.generate([Prompt("", draw(300, 1), 10)])
    assert isinstance(answer, Answer)
    assert len(answer.ids) > 0


def test_a_changed_weight_changes_the_fingerprint(model_folder: Path, tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    described = HFBackend(model_folder, tokenizer).describe()
    assert described["dtype"] == "fp32"
    for path in model_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = bytearray((tmp_path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    assert HFBackend(tmp_path, tokenizer).describe()["weights"] != described["weights"]


def test_the_cache_has_room_for_prompt_and_budget(model_folder: Path, tokenizer: ChatTokenizer) -> None:
    """No new token moves what is there."""
    backend = HFBackend(model_folder, tokenizer, chunk=16)
    prompts = [Prompt("", draw(64, 1)[:50], 8), Prompt("", draw(64, 1), 12), Prompt("", draw(64, 1)[:20], 1)]
    rooms = []
    for prompt in prompts:
        list(backend.generate([prompt]))
        rooms.append(backend._cache._layers[0]._stores[0].shape[-2])
    assert rooms == [58, 76, 76]
