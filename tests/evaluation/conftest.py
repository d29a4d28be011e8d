"""Tiny models in Hugging Face format, one drawn at random and one that was taught to find a key."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import tokenizers
import torch
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from megatron_ultralong.data.tokenizer.chat import ChatTokenizer
from megatron_ultralong.evaluation.backends.hf import LanguageModel, read_info
from megatron_ultralong.evaluation.benchmarks.haystack import Haystack
from tests.evaluation.drawn_texts import drawn_text

CONTEXT = 192
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
    "+ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Three texts of 15 to 20 thousand characters."""
    return [drawn_text(seed) for seed in range(3)]


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    """Byte-level BPE with Qwen2's split and a chat template as Llama-3's."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*texts, "What is the red key?\nThe red key is \n" * 50], trainer)
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[0],
        "eos_token": SPECIAL[-1],
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> ChatTokenizer:
    return ChatTokenizer(tokenizer_folder)


@pytest.fixture(scope="session")
def haystack(texts: list[str], tokenizer: ChatTokenizer) -> Haystack:
    return Haystack(texts, tokenizer)


@pytest.fixture
def rng() -> random.Random:
    return random.Random(7)


def save_model(folder: Path, tokenizer_folder: Path, seed: int, **changes: object) -> Path:
    """Write a random tiny Llama with the tokenizer's files."""
    fields = {
        "vocab_size": 512,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.3,
    }
    torch.manual_seed(seed)
    LlamaForCausalLM(LlamaConfig(**(fields | changes))).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tokenizer_folder / name).read_bytes())
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A random model."""
    return save_model(tmp_path_factory.mktemp("base") / "model", tokenizer_folder, seed=0)


@pytest.fixture(scope="session")
def extended_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """Another, of twice the context, with scaled positions."""
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 2.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": CONTEXT,
    }
    return save_model(
        tmp_path_factory.mktemp("extended") / "model",
        tokenizer_folder,
        seed=1,
        max_position_embeddings=2 * CONTEXT,
        rope_parameters=scaling,
    )


@pytest.fixture(scope="session")
def model(model_folder: Path) -> LanguageModel:
    return LanguageModel(read_info(model_folder))
