"""Make the data of the tiny example from what every Python has: the sources of its standard library.

Three commands, each writing JSON Lines (and `base` a model folder) below --output:

* base: model/ (a tokenizer trained here, config.json), text.jsonl and recall.jsonl, to train a base model at a
  short context with train_base.sh;
* extend: corpus.jsonl, whole documents of several sources, and heldout.jsonl, documents the model never sees;
* chat: sft.jsonl, short conversations for the instruction-tuning stage.

A document belongs to the held-out tenth by the hash of its name, so the three never disagree.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from megatron_ultralong.cli import run
from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.chat import ChatTokenizer
from megatron_ultralong.evaluation.haystack import Haystack
from megatron_ultralong.evaluation.recall import NAMES, answer, question, recall_conversation
from megatron_ultralong.files import atomic_directory, atomic_file
from megatron_ultralong.progress import track

# Digits one by one, words with their leading space: the split of Qwen2's tokenizer.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
CHAT_TEMPLATE = (
    "{{ '<|begin_of_text|>' }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
VOCABULARY = 1024
CONTEXT = 256
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.06,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "rope_theta": 10000.0,
    "bos_token_id": 0,
    "eos_token_id": 4,
    "dtype": "float32",
}


def documents() -> list[tuple[str, str, str]]:
    """(name, source, text) of every module of the standard library; the source is its part of the library."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if "site-packages" in parts or "dist-packages" in parts:
            continue
        source = "modules" if len(parts) == 1 else "tests" if "test" in parts or "tests" in parts else "packages"
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        if text.strip():
            found.append(("/".join(parts), source, text))
    if not found:
        raise UserError(f"{root}: the standard library's sources are not there; use a Python that ships them.")
    return found


def is_heldout(name: str) -> bool:
    """Whether a document is kept for evaluation: a tenth, by the hash of its name."""
    return hashlib.sha256(name.encode()).digest()[0] % 10 == 0


def write_lines(path: Path, rows: Iterator[dict[str, object]]) -> None:
    """Write JSON Lines, atomically."""
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def train_tokenizer(texts: list[str], folder: Path) -> None:
    """A byte-level BPE of 1,024 entries on `texts`; the words of the recall task become entries."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    wording = [f"{question(name)}\n\n{answer(name, '0')}\n" for name in NAMES] * 3000
    tokenizer.train_from_iterator([*texts, *wording], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[0],
        "eos_token": SPECIAL[4],
        "pad_token": SPECIAL[1],
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def conversations(
    tokenizer: ChatTokenizer, texts: list[str], count: int, seed: int, copies: float
) -> Iterator[dict[str, object]]:
    """Chats of at most 256 tokens: facts in real text with questions, and (a share of `copies`) words to repeat."""
    rng = random.Random(seed)
    haystack = Haystack(texts, tokenizer)
    words = sorted({word for text in texts[:400] for word in text.split() if word.isalpha() and word.islower()})
    for _ in track(range(count), "conversations", "conversations"):
        if rng.random() < copies:
            chosen = " ".join(rng.choices(words, k=rng.randint(4, 30)))
            messages = [
                {"role": "user", "content": f"Repeat: {chosen}"},
                {"role": "assistant", "content": chosen},
            ]
            if len(tokenizer.encode(tokenizer.render(messages))) > CONTEXT:
                continue
        else:
            messages = recall_conversation(
                rng,
                haystack,
                tokenizer,
                max_tokens=CONTEXT,
                facts=rng.choice((1, 1, 1, 2, 3, 4, 5)),
                filler_tokens=rng.randint(0, CONTEXT),
            )
        yield {"messages": messages, "source": "recall"}


def make_data(
    part: Literal["base", "extend", "chat"],
    /,
    *,
    output: Path,
    tokenizer: Path | None = None,
    count: int = 1000,
    seed: int = 1234,
) -> None:
    """Write one part of the example's data.

    Args:
        part: Which part (see this file's head).
        output: Folder to write it into.
        tokenizer: Folder of the tokenizer, for chat.
        count: Conversations to make, for base and chat.
        seed: Of the conversations.
    """
    train = [row for row in documents() if not is_heldout(row[0])]
    texts = [text for _, source, text in train if source != "tests"]
    if part == "base":
        with atomic_directory(output / "model") as folder:
            train_tokenizer(texts, folder)
            (folder / "config.json").write_text(json.dumps(MODEL, indent=2) + "\n", encoding="utf-8")
        write_lines(output / "text.jsonl", ({"text": text, "source": source} for _, source, text in train))
        chats = conversations(ChatTokenizer(output / "model"), texts, count, seed, copies=0.3)
        write_lines(output / "recall.jsonl", chats)
    elif part == "extend":
        write_lines(output / "corpus.jsonl", ({"text": text, "source": source} for _, source, text in train))
        heldout = [row for row in documents() if is_heldout(row[0])]
        write_lines(output / "heldout.jsonl", ({"text": t, "source": s, "name": n} for n, s, t in heldout))
    else:
        if tokenizer is None:
            raise UserError("--tokenizer is missing; give the model's folder.")
        chats = conversations(ChatTokenizer(tokenizer), texts, count, seed, copies=0.0)
        write_lines(output / "sft.jsonl", chats)


if __name__ == "__main__":
    sys.exit(run(make_data))
