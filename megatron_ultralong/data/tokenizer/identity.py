"""Which tokenizer a path holds, and hashes of what decides its ids and its renderings, without loading transformers.

The hash of a Hugging Face folder covers what transformers' AutoTokenizer reads to build its pipeline: tokenizer.json,
tokenizer_config.json, the model type of config.json, and older files where it still reads those. Left out is what
changes no id of a text: lengths, padding and truncation, post-processing, and chat templates, which have a hash of
their own (`template_fingerprint`). So a copy that differs only there is the same tokenizer. Which pipeline a version of
transformers builds from these files is beyond them: `Tokenizer.backend_fingerprint` tells. Cost: one parse.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from pathlib import Path
from typing import Any

import orjson

from megatron_ultralong.data.tokenizer.tiktoken_file import is_tiktoken
from megatron_ultralong.errors import UserError

BYTES = "bytes"
"""In place of a path: each byte is an id, for tests."""

_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "*.tiktoken", "vocab.json", "tekken.json")
_LIBRARIES = ("transformers", "tokenizers", "sentencepiece", "tiktoken", "gigatoken")
_NOT_IN_IDS = {
    "tokenizer.json": {"version", "truncation", "padding", "post_processor"},
    "tokenizer_config.json": {
        *("chat_template", "model_max_length", "max_len", "max_length", "stride", "auto_map", "name_or_path"),
        *("truncation", "truncation_side", "truncation_strategy", "tokenizer_truncation", "tokenizer_padding"),
        *("padding", "padding_side", "pad_to_multiple_of", "pad_token_type_id", "clean_up_tokenization_spaces"),
        *("special_tokens_map_file", "model_input_names", "processor_class", "use_default_system_prompt"),
        *("spaces_between_special_tokens", "errors", "transformers_version", "response_schema"),
    },
}
"""Entries that change no id of a text; any other, known or not, counts."""


def tokenizer_file(path: Path) -> Path:
    """The file that defines a tokenizer: `path`, or in a folder the first of tokenizer.json, tokenizer.model, ....

    Raises:
        UserError: there is none.
    """
    path = Path(path)
    if path.is_file():
        return path
    for pattern in _VOCABULARIES:
        for found in sorted(path.glob(pattern)):
            if found.is_file():
                return found
    raise UserError(
        f"{path / 'tokenizer.json'}: the tokenizer is missing; name a folder in Hugging Face format that has one, "
        "a sentencepiece or tiktoken file, or 'bytes'."
    )


def hugging_face_folder(path: Path) -> Path | None:
    """The folder that transformers loads, or None where a file of another format is all there is.

    Raises:
        UserError: there is no tokenizer.
    """
    if str(path) == BYTES:
        return None
    file = tokenizer_file(path)
    beside = Path(path).is_dir() and any(
        (file.parent / name).is_file() for name in ("tokenizer_config.json", "config.json")
    )
    return file.parent if beside or file.name == "tokenizer.json" else None


def tokenizer_fingerprint(path: Path) -> str:
    """SHA-256 (hex) of what decides the ids of a text.

    Raises:
        UserError: there is no tokenizer.
    """
    if str(path) == BYTES:
        return hashlib.sha256(BYTES.encode()).hexdigest()
    folder = hugging_face_folder(path)
    if folder is None:
        return _file_hash(tokenizer_file(path))
    config = _object(folder / "tokenizer_config.json")
    model = _object(folder / "config.json")
    decides: dict[str, Any] = {"config.json": {key: model.get(key) for key in ("model_type", "tokenizer_class")}}
    names = ["tokenizer.json", "tokenizer_config.json"]
    if "added_tokens_decoder" not in config:  # only then transformers reads these
        names += ["special_tokens_map.json", "added_tokens.json"]
    for file in (folder / name for name in names):
        if file.is_file():
            decides[file.name] = _object_hash(file)
    if "tokenizer.json" not in decides:
        for file in sorted(file for pattern in (*_VOCABULARIES, "merges.txt") for file in folder.glob(pattern)):
            decides[file.name] = _file_hash(file)
    return _hash(decides)


def is_same_tokenizer(path: Path, fingerprint: str) -> bool:
    """Whether `fingerprint` is of the tokenizer at `path`, or of its one file, as earlier versions wrote.

    Raises:
        UserError: there is no tokenizer.
    """
    if fingerprint == tokenizer_fingerprint(path):
        return True
    return str(path) != BYTES and fingerprint == _file_hash(tokenizer_file(path))


def check_tokenizer(path: Path, expected: str, prefix: Path) -> None:
    """Refuse a tokenizer that is not the one that made the tokens of `prefix`.

    Raises:
        UserError: its fingerprint is not `expected`.
    """
    if not is_same_tokenizer(path, expected):
        name = path if str(path) == BYTES else tokenizer_file(path)
        raise UserError(
            f"{name}: is not the tokenizer that made {prefix}.bin; "
            "name that one, or tokenize again with tools/preprocess_data.py. Special tokens and classes in the files "
            "beside it count too."
        )


def foreign(path: Path, manifest: dict[str, Any]) -> str:
    """What made the tokens of a manifest otherwise than the folder `path` would; "" if nothing did.

    Raises:
        UserError: there is no tokenizer.
    """
    if not is_same_tokenizer(path, manifest["tokenizer_fingerprint"]):
        return f"tokens of another tokenizer than {path / 'tokenizer.json'}"
    template = manifest.get("template_fingerprint")
    return (
        f"chats in another chat template than {path} has" if template not in (None, template_fingerprint(path)) else ""
    )


def template_fingerprint(path: Path) -> str | None:
    """SHA-256 (hex) of a folder's chat templates; None: it has none.

    They come from where transformers takes them: chat_template.jinja and additional_chat_templates, else
    tokenizer_config.json.

    Raises:
        UserError: there is no tokenizer.
    """
    folder = hugging_face_folder(path)
    if folder is None:
        return None
    files = {file.stem: file for file in folder.glob("additional_chat_templates/*.jinja")}
    if (folder / "chat_template.jinja").is_file():
        files["default"] = folder / "chat_template.jinja"
    if files:
        return hash_of_templates({name: file.read_text(encoding="utf-8") for name, file in files.items()})
    return hash_of_templates(_object(folder / "tokenizer_config.json").get("chat_template"))


def hash_of_templates(templates: Any) -> str | None:
    """SHA-256 (hex) of one template, or of several by name in either of transformers' spellings; None of none."""
    if not templates:
        return None
    if isinstance(templates, str):
        templates = {"default": templates}
    elif isinstance(templates, list):
        templates = {str(entry.get("name")): entry.get("template") for entry in templates if isinstance(entry, dict)}
    return _hash(templates)


def pipeline_fingerprint(model: bytes, split_special: bool) -> str:
    """SHA-256 (hex) of the contents of a tokenizer.json by what decides ids, in whichever version's spelling.

    Raises:
        ValueError: it is no such object.
    """
    whole = orjson.loads(model)
    if not isinstance(whole, dict) or not isinstance(whole.get("model"), dict):
        raise ValueError("no tokenizer.json")
    for name in (*_NOT_IN_IDS["tokenizer.json"], "decoder"):
        whole.pop(name, None)
    entries = {"type": "BPE", **whole["model"]} if "merges" in whole["model"] else whole["model"]
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in entries.get("merges", [])]
    off = (None, False, "")  # what a flag is where it is not written
    whole["model"] = {name: value for name, value in entries.items() if value not in off} | {"merges": merges}
    whole["pre_tokenizer"] = _without_offsets(whole.get("pre_tokenizer"))
    return _hash([whole, split_special])


def _without_offsets(step: Any) -> Any:
    """A pre-tokenizer without the flag by which some versions differ and that moves only offsets."""
    if isinstance(step, list):
        return [_without_offsets(each) for each in step]
    if isinstance(step, dict):
        return {name: _without_offsets(value) for name, value in step.items() if name != "trim_offsets"}
    return step


def library_versions() -> dict[str, str]:
    """Versions of what ids and renderings are made with, as far as it is installed."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def deciding_versions(path: Path, versions: dict[str, str]) -> dict[str, str]:
    """Those of `versions` whose library defines this tokenizer's ids; gigatoken's are compared with theirs."""
    if str(path) == BYTES:
        return {}
    if hugging_face_folder(path) is None and not is_tiktoken(tokenizer_file(path)):
        names = ["sentencepiece"]
    else:
        names = ["transformers", "tokenizers"]
    return {name: versions[name] for name in names if name in versions}


def _object(file: Path) -> dict[str, Any]:
    """The JSON object in a file; {} if it is missing or something else, which loading it will complain of."""
    try:
        value = orjson.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _object_hash(file: Path) -> str:
    """SHA-256 (hex) of a JSON object, whatever its layout, without what is in no id; of the bytes of anything else."""
    content = file.read_bytes()
    try:
        value = orjson.loads(content)
    except ValueError:
        return hashlib.sha256(content).hexdigest()
    if isinstance(value, dict):
        value = {name: entry for name, entry in value.items() if name not in _NOT_IN_IDS.get(file.name, ())}
    return _hash(value)


def _file_hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _hash(value: Any) -> str:
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)).hexdigest()
