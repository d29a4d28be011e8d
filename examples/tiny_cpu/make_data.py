"""Make the data of the tiny example from what every Python has: the sources of its standard library.

Three commands, each writing JSON Lines (and `base` a model folder) below --output:

* base: model/ (a tokenizer trained here, config.json), text.jsonl and notes_N.jsonl for each length N that the
  base model is trained at in turn by train_base.sh;
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from megatron_ultralong.cli import run
from megatron_ultralong.data.tokenizer.chat import ChatTokenizer, Message
from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.benchmarks.haystack import Haystack
from megatron_ultralong.evaluation.benchmarks.keys import NAMES, Fact, fact, question, random_facts
from megatron_ultralong.evaluation.benchmarks.retrieval import answer, count_tokens, recall_conversation
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
LESSONS = (96, CONTEXT)
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
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
    wording = [f"user\n\n{question(name)}\nassistant\n\n{answer(name, '0')}\n" for name in NAMES] * 3000
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


def notes(rng: random.Random, haystack: Haystack, tokenizer: ChatTokenizer, length: int) -> list[Message]:
    """A chat of at most `length` tokens in which keys are told and asked for, again and again, with text between.

    The distance from a fact to a question about it varies freely, so that it can't be found by its place.
    """
    facts = random_facts(rng, rng.randint(1, max(1, length // 32)))
    told: list[Fact] = []
    messages: list[Message] = []
    room = length
    while True:
        lines = haystack.take(rng, rng.randint(0, length // 3)) if rng.random() < 0.7 else []
        if len(told) < len(facts) and (not told or rng.random() < 0.5):
            told.append(facts[len(told)])
            lines.insert(rng.randint(0, len(lines)), fact(*told[-1]))
        name, digits = rng.choice(told)
        turn = [
            {"role": "user", "content": "\n".join([*lines, question(name)])},
            {"role": "assistant", "content": answer(name, digits)},
        ]
        room -= count_tokens(tokenizer, turn)  # counts the template's opening token every time, so a little too much
        if room < 0:
            if messages:
                return messages
            room = length
            told.clear()
            continue
        messages += turn


def recalls(rng: random.Random, haystack: Haystack, tokenizer: ChatTokenizer, length: int) -> list[Message]:
    """A text with one key in it and a question about it."""
    filler = rng.randint(0, length)
    return recall_conversation(rng, haystack, tokenizer, max_tokens=length, facts=1, filler_tokens=filler, questions=1)


def chats(
    make: Callable[[random.Random, Haystack, ChatTokenizer, int], list[Message]],
    tokenizer: ChatTokenizer,
    texts: list[str],
    length: int,
    count: int,
    seed: int,
) -> Iterator[dict[str, object]]:
    """`count` chats of at most `length` tokens."""
    rng = random.Random(seed)
    haystack = Haystack(texts, tokenizer)
    for _ in track(range(count), f"chats of {length} tokens", "chats"):
        yield {"messages": make(rng, haystack, tokenizer, length), "source": make.__name__}


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
        own = ChatTokenizer(output / "model")
        for length in LESSONS:
            write_lines(output / f"notes_{length}.jsonl", chats(notes, own, texts, length, count, seed + length))
    elif part == "extend":
        write_lines(output / "corpus.jsonl", ({"text": text, "source": source} for _, source, text in train))
        heldout = [row for row in documents() if is_heldout(row[0])]
        write_lines(output / "heldout.jsonl", ({"text": t, "source": s, "name": n} for n, s, t in heldout))
    else:
        if tokenizer is None:
            raise UserError("--tokenizer is missing; give the model's folder.")
        rows = chats(recalls, ChatTokenizer(tokenizer), texts, CONTEXT, count, seed)
        write_lines(output / "sft.jsonl", rows)


if __name__ == "__main__":
    sys.exit(run(make_data))
