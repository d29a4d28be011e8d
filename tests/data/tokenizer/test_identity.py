"""What makes a tokenizer another one, and what does not."""

import hashlib
import json
import shutil

import pytest
import transformers

from megatron_ultralong.data.tokenizer.identity import (
    hash_of_templates,
    is_same_tokenizer,
    template_fingerprint,
    tokenizer_fingerprint,
)
from megatron_ultralong.data.tokenizer.tokenizer import Tokenizer, load_tokenizer
from megatron_ultralong.errors import UserError
from tests.data.tokenizer.shapes import FLAGGED, llama3, mistral, sentencepiece_file, token


def edit(folder, name, change):
    path = folder / name
    value = json.loads(path.read_text()) if path.exists() else {}
    change(value)
    path.write_text(json.dumps(value, indent=1))


def put(**entries):
    return lambda value: value.update(entries)


CUT = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
PAD = {"strategy": {"Fixed": 30}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
PAD |= {"pad_type_id": 0, "pad_token": "<|eot_id|>"}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("tokenizer.json", lambda value: None),  # another layout
        ("tokenizer.json", put(truncation=CUT)),
        ("tokenizer.json", put(padding=PAD)),
        ("tokenizer.json", put(post_processor=LEVEL)),
        ("tokenizer_config.json", put(chat_template="other")),
        ("tokenizer_config.json", put(model_max_length=1 << 20, padding_side="left", max_length=4)),
        ("config.json", put(max_position_embeddings=1 << 20, rope_scaling={"factor": 8.0})),
        ("special_tokens_map.json", put(eos_token="<|end_of_text|>")),  # not read beside added_tokens_decoder
        ("generation_config.json", put(max_length=4)),
    ],
)
def test_what_changes_no_id_is_the_same_tokenizer(tmp_path, name, change):
    folder = llama3(tmp_path / "t", added_tokens_decoder={})
    before, text = tokenizer_fingerprint(folder), "some words, <|eot_id|> and more of them"
    ids, pipeline = load_tokenizer(folder).encode(text), Tokenizer(folder).backend_fingerprint
    edit(folder, name, change)
    assert tokenizer_fingerprint(folder) == before and load_tokenizer(folder).encode(text) == ids
    assert Tokenizer(folder).backend_fingerprint == pipeline


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("tokenizer.json", lambda value: value["model"]["vocab"].update(new=5000)),
        ("tokenizer.json", lambda value: value["added_tokens"][0].update(lstrip=True)),
        ("tokenizer.json", put(normalizer={"type": "NFC"})),
        ("tokenizer_config.json", put(eos_token="<|end_of_text|>")),
        ("tokenizer_config.json", put(split_special_tokens=True)),
        ("tokenizer_config.json", put(tokenizer_class="Qwen2Tokenizer")),
        ("tokenizer_config.json", put(pad_token="<|pad|>")),
        ("tokenizer_config.json", put(additional_special_tokens=["<new>"])),
        ("config.json", put(model_type="qwen2")),
        ("special_tokens_map.json", put(eos_token="<|end_of_text|>")),
        ("added_tokens.json", put(**{"<new>": 6000})),
    ],
)
def test_what_may_change_ids_is_another_tokenizer(tmp_path, name, change):
    folder = llama3(tmp_path / "t")
    before = tokenizer_fingerprint(folder)
    edit(folder, name, change)
    assert tokenizer_fingerprint(folder) != before and not is_same_tokenizer(folder, before)


def test_a_fingerprint_of_earlier_versions_still_counts(tmp_path):
    folder = llama3(tmp_path / "t")
    assert is_same_tokenizer(folder, hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest())


def test_the_pipeline_tells_flags_that_no_file_holds(tmp_path):
    plain, split = llama3(tmp_path / "a", FLAGGED), llama3(tmp_path / "b", FLAGGED, split_special_tokens=True)
    assert Tokenizer(plain).recipe.model == Tokenizer(split).recipe.model
    assert Tokenizer(plain).backend_fingerprint != Tokenizer(split).backend_fingerprint


def test_templates_are_found_where_transformers_finds_them(tmp_path):
    folder = llama3(tmp_path / "t")
    assert template_fingerprint(folder) is None and template_fingerprint("bytes") is None
    seen = set()
    for change in (
        put(chat_template="a"),
        put(chat_template=[{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]),
        lambda value: (folder / "chat_template.jinja").write_text("c"),
        lambda value: (
            (folder / "additional_chat_templates").mkdir(),
            (folder / "additional_chat_templates" / "tool_use.jinja").write_text("d"),
        ),
    ):
        edit(folder, "tokenizer_config.json", change)
        loaded = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        assert template_fingerprint(folder) == hash_of_templates(loaded.chat_template)
        seen.add(template_fingerprint(folder))
    assert len(seen) == 4


@pytest.mark.parametrize("name", ["llama3", "mistral"])
def test_truncation_and_padding_are_never_applied(tmp_path, name):
    folder = {"llama3": llama3, "mistral": mistral}[name](tmp_path / "t")
    text = "some words that are more than four, and <s> less than thirty"
    expected = load_tokenizer(folder).encode(text)
    edit(folder, "tokenizer.json", put(truncation=CUT, padding=PAD))
    ours = load_tokenizer(folder)
    assert ours.encode(text) == expected and len(expected) not in (4, 30)
    assert ours.hf.backend_tokenizer.encode(text, add_special_tokens=False).ids == expected  # what chats are encoded by
    assert ours.hf(text, add_special_tokens=False)["input_ids"] == expected


def test_a_folder_of_transformers_without_a_tokenizer_json(tmp_path):
    """It is what AutoTokenizer makes of it; the same model alone is sentencepiece's."""
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "eos_token": "</s>"}
    folder = sentencepiece_file(tmp_path / "a", config=config)
    assert load_tokenizer(folder).is_hugging_face and load_tokenizer(folder).end_of_document == 2
    alone = load_tokenizer(folder / "tokenizer.model")
    assert not alone.is_hugging_face and alone.fingerprint != tokenizer_fingerprint(folder)
    shutil.copytree(folder, tmp_path / "b")
    (tmp_path / "b" / "tokenizer.model").write_bytes(b"other")
    assert tokenizer_fingerprint(folder) != tokenizer_fingerprint(tmp_path / "b")


def test_ids_that_are_drawn_at_random_are_refused(tmp_path):
    folder = llama3(tmp_path / "t")
    edit(folder, "tokenizer.json", lambda value: value["model"].update(dropout=0.1))
    with pytest.raises(UserError, match=r"its BPE has a dropout of 0\.1\d*, so that ids are drawn at random; set"):
        load_tokenizer(folder)


def test_every_flag_survives_the_way_to_a_worker(tmp_path):
    ours = load_tokenizer(llama3(tmp_path / "t", FLAGGED))
    written = {entry["content"]: entry for entry in json.loads(ours.recipe.content())["added_tokens"]}
    assert all(written[entry["content"]] | entry == written[entry["content"]] for entry in FLAGGED)
    assert token("<tool>", single_word=True) in FLAGGED
