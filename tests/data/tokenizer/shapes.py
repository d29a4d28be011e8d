"""A small tokenizer of every shape in use, made by rule: what a folder holds, and what its ids are by definition.

`build(name, folder)` writes one and returns what a user would give as --tokenizer-model. `reference(path)` is the
definition of its ids: transformers' AutoTokenizer for a folder in Hugging Face format, else the format's own library.
"""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from tests.data.tokenizer.scripts import SCRIPTS

GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")

Json = dict[str, Any]


def token(content: str, **flags: bool) -> Json:
    """An entry of `added_tokens`, special and not normalized unless said otherwise; ids are given later."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"content": content, **plain, **flags}


FLAGGED = [
    token("<tool>", single_word=True),
    token("<plain-tool>", single_word=True, special=False),
    token("<left>", lstrip=True),
    token("<right>", rstrip=True),
    token("<both>", lstrip=True, rstrip=True, special=False),
    token("<alone>", single_word=True, lstrip=True, rstrip=True),
    token("<norm>", normalized=True),
    token("<Norm é word>", normalized=True, special=False),
    token("word", single_word=True, normalized=True, special=False),
    token("<|unnamed|>"),
    token("<ends in a space> ", special=False),
    token("<|unnamed|>s", special=False),
    token("東京", special=False),
    token("    ", special=False),
]
"""Added tokens with every flag, special but named nowhere, ending in a space, beginning as another does, in words."""


@functools.cache
def _trained(split: str | None) -> tuple[dict[str, int], list[list[str]]]:
    """Vocabulary and merges of byte-level BPE with this split, or of BPE on characters where "▁" begins a word."""
    rust = tokenizers.Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=900, show_progress=False)
    if split is None:
        rust.pre_tokenizer = pre_tokenizers.Metaspace()
    else:
        trainer.initial_alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        rust.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated"), level])
    rust.train_from_iterator(list(SCRIPTS.values()) * 3, trainer)
    model = json.loads(rust.to_str())["model"]
    return model["vocab"], model["merges"]


def _write(folder: Path, recipe: Json, config: Json, model_type: str, added: list[Json]) -> Path:
    """A folder in Hugging Face format; added tokens that the vocabulary lacks get the ids behind it."""
    vocab = recipe["model"]["vocab"]
    known = dict(vocab) if isinstance(vocab, dict) else {piece: i for i, (piece, _) in enumerate(vocab)}
    tokens = [{"id": known.setdefault(entry["content"], len(known)), **entry} for entry in added]
    whole = {"version": "1.0", "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": None}
    whole |= {"post_processor": None, "decoder": None, "added_tokens": tokens} | recipe
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (
        ("tokenizer.json", whole),
        ("tokenizer_config.json", config),
        ("config.json", {"model_type": model_type}),
    ):
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return folder


def _byte_level(
    folder: Path,
    split: str,
    config: Json,
    model_type: str,
    added: list[Json],
    *,
    prefix: bool = False,
    normalizer: Json | None = None,
    **model: Any,
) -> Path:
    vocab, merges = _trained(split)
    own = split == GPT2_SPLIT
    level = {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": own}
    cut = {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False}
    recipe = {
        "normalizer": normalizer,
        "pre_tokenizer": level if own else {"type": "Sequence", "pretokenizers": [cut, level]},
        "decoder": level,
        "model": {"type": "BPE", "dropout": None, "vocab": vocab, "merges": merges, **model},
    }
    return _write(folder, recipe, config, model_type, added)


def _pieces(folder: Path, config: Json, model_type: str, added: list[Json] | None = None, **recipe: Any) -> Path:
    """BPE on characters with "▁" for a space, and bytes for characters that are unknown."""
    trained, merges = _trained(None)
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {piece: i for i, piece in enumerate([*first, *trained])}
    model = {"type": "BPE", "dropout": None, "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    parts = [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"}]
    recipe = {
        "decoder": {"type": "Sequence", "decoders": [*parts, {"type": "Fuse"}]},
        "model": {**model, "vocab": vocab, "merges": merges},
        **recipe,
    }
    specials = [token("<unk>"), token("<s>"), token("</s>"), *(added or [])]
    return _write(
        folder, recipe, {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"} | config, model_type, specials
    )


def _metaspace(scheme: str, split: bool = False) -> Json:
    return {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": split}


_FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}
_LLAMA3 = [
    token(f"<|{name}|>") for name in ("begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eot_id")
]
_QWEN2 = [token(f"<|{name}|>") for name in ("endoftext", "im_start", "im_end")]
_PREPEND = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
    ],
}


def llama3(folder: Path, added: list[Json] | None = None, **config: Any) -> Path:
    """Byte-level BPE with Llama 3's split, words looked up whole before merging."""
    config = {**_FAST, "bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", **config}
    return _byte_level(folder, LLAMA3_SPLIT, config, "llama", _LLAMA3 + (added or []), ignore_merges=True)


def gpt2(folder: Path, prefix: bool = False) -> Path:
    """GPT-2, also with a space put before the text."""
    config = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": prefix, "eos_token": "<|endoftext|>"}
    return _byte_level(folder, GPT2_SPLIT, config, "gpt2", [token("<|endoftext|>")], prefix=prefix)


def qwen2(folder: Path, nfc: bool = True, added: list[Json] | None = None) -> Path:
    """Qwen 2; without NFC in the file, transformers' class adds it all the same."""
    config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    normalizer = {"type": "NFC"} if nfc else None
    return _byte_level(folder, QWEN2_SPLIT, config, "qwen2", _QWEN2 + (added or []), normalizer=normalizer)


def llama2(folder: Path, tokenizer_class: str = "LlamaTokenizer") -> Path:
    """Llama 2, whose file prepends "▁" in its normalizer; LlamaTokenizer builds a Metaspace of its own instead."""
    return _pieces(folder, {"tokenizer_class": tokenizer_class, "legacy": True}, "llama", normalizer=_PREPEND)


def mistral(folder: Path, scheme: str = "first", added: list[Json] | None = None) -> Path:
    """Mistral's Metaspace: a space before the text ("first"), before each part ("always"), or none ("never")."""
    return _pieces(folder, dict(_FAST), "mistral", added, pre_tokenizer=_metaspace(scheme))


def gemma(folder: Path) -> Path:
    """Gemma: spaces become "▁", none is added, and the text is cut at them."""
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    cut = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    return _pieces(folder, {"tokenizer_class": "GemmaTokenizer"}, "gemma", normalizer=replace, pre_tokenizer=cut)


def unigram(folder: Path, added: list[Json] | None = None) -> Path:
    """Unigram with a Metaspace, and bytes for characters that are unknown."""
    rust = tokenizers.Tokenizer(models.Unigram())
    rust.pre_tokenizer = pre_tokenizers.Metaspace()
    rust.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=900, show_progress=False, unk_token="<unk>")
    rust.train_from_iterator(list(SCRIPTS.values()) * 3, trainer)
    recipe = json.loads(rust.to_str())
    entries = [["<unk>", 0.0], ["<s>", 0.0], ["</s>", 0.0], *([f"<0x{byte:02X}>", 0.0] for byte in range(256))]
    entries += [entry for entry in recipe["model"]["vocab"] if entry[0] != "<unk>"]
    recipe["model"] = {"type": "Unigram", "unk_id": 0, "vocab": entries, "byte_fallback": True}
    del recipe["added_tokens"]
    config = _FAST | {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}
    return _write(folder, recipe, config, "t5", [token("<unk>"), token("<s>"), token("</s>"), *(added or [])])


def sentencepiece_file(folder: Path, kind: str = "bpe", config: Json | None = None) -> Path:
    """A folder with sentencepiece's own file, and with `config` also transformers' tokenizer_config.json."""
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in SCRIPTS.values() for line in text.splitlines()),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=900 if kind == "bpe" else 600,
        model_type=kind,
        character_coverage=0.98,
        normalization_rule_name="identity" if kind == "bpe" else "nmt_nfkc",
        byte_fallback=True,
        user_defined_symbols=["<tool>", "[INST]"],
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


def tiktoken_file(folder: Path) -> Path:
    """A folder with Llama 3's own tokenizer.model: tokens in base64 and their ranks."""
    vocab, merges = _trained(LLAMA3_SPLIT)
    letters = _byte_letters()
    ranks = [bytes([byte]) for byte in range(256)]
    ranks += [bytes(letters[letter] for letter in "".join(pair)) for pair in merges]
    assert len(set(ranks)) == len(ranks) == len(vocab)
    folder.mkdir(parents=True, exist_ok=True)
    lines = (base64.b64encode(piece) + b" %d\n" % rank for rank, piece in enumerate(ranks))
    (folder / "tokenizer.model").write_bytes(b"".join(lines))
    return folder


def _byte_letters() -> dict[str, int]:
    """The byte for which each letter of byte-level BPE stands (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


SHAPES: dict[str, Callable[[Path], Path]] = {
    "llama3": llama3,
    "gpt2": gpt2,
    "gpt2-prefix": functools.partial(gpt2, prefix=True),
    "qwen2": qwen2,
    "qwen2-nfc-by-class": functools.partial(qwen2, nfc=False),
    "llama2": llama2,
    "llama2-prepend": functools.partial(llama2, tokenizer_class="PreTrainedTokenizerFast"),
    "llama2-model": functools.partial(
        sentencepiece_file,
        config={"tokenizer_class": "LlamaTokenizer", "legacy": False, "eos_token": "</s>", "bos_token": "<s>"},
    ),
    "mistral-first": mistral,
    "mistral-always": functools.partial(mistral, scheme="always"),
    "mistral-never": functools.partial(mistral, scheme="never"),
    "gemma": gemma,
    "unigram": unigram,
    "sentencepiece-bpe": sentencepiece_file,
    "sentencepiece-unigram": functools.partial(sentencepiece_file, kind="unigram"),
    "tiktoken": tiktoken_file,
    "bytes": lambda folder: Path("bytes"),
    "added-byte-level": functools.partial(llama3, added=FLAGGED),
    "added-nfc": functools.partial(qwen2, added=FLAGGED),
    "added-first": functools.partial(mistral, added=FLAGGED),
    "added-always": functools.partial(mistral, scheme="always", added=FLAGGED),
    "added-unigram": functools.partial(unigram, added=FLAGGED),
    "split-special": functools.partial(llama3, added=FLAGGED, split_special_tokens=True),
}
"""Every shape by name: a function that writes it into a folder and returns the path for --tokenizer-model."""


def build(name: str, folder: Path) -> Path:
    """Write the shape `name` into `folder`; returns what is given as --tokenizer-model."""
    return SHAPES[name](folder)


def reference(path: Path) -> Callable[[str], list[int]]:
    """The definition of a tokenizer's ids, without special tokens added."""
    if str(path) == "bytes":
        return lambda text: list(text.encode())
    if (path / "tokenizer_config.json").is_file():
        from transformers import AutoTokenizer

        loaded = AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
        return lambda text: loaded(text, add_special_tokens=False)["input_ids"]
    content = (path / "tokenizer.model").read_bytes()
    if content[:1] == b"\n":
        import sentencepiece

        return sentencepiece.SentencePieceProcessor(model_proto=content).encode
    import tiktoken

    ranks = {base64.b64decode(piece): int(rank) for piece, rank in map(bytes.split, content.splitlines())}
    return tiktoken.Encoding("shape", pat_str=LLAMA3_SPLIT, mergeable_ranks=ranks, special_tokens={}).encode_ordinary


def added_tokens(path: Path) -> list[str]:
    """What a folder's added tokens spell."""
    file = path / "tokenizer.json"
    return (
        [entry["content"] for entry in json.loads(file.read_text(encoding="utf-8"))["added_tokens"]]
        if file.is_file()
        else []
    )
