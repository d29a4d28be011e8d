"""The tokenizer of an exported folder: the one that was trained with, without what would cut or fill texts."""

import json
import shutil
from pathlib import Path

import transformers

from megatron_ultralong.convert.hf_to_megatron import convert_hf_to_megatron
from megatron_ultralong.convert.megatron_to_hf import convert_megatron_to_hf
from megatron_ultralong.data.tokenizer.identity import template_fingerprint, tokenizer_fingerprint
from tests.convert.tiny_models import Build
from tests.data.tokenizer.shapes import llama3


def test_truncation_and_padding_stay_behind_and_the_tokenizer_is_the_same(build: Build, tmp_path: Path) -> None:
    hf = shutil.copytree(build("llama"), tmp_path / "hf")
    llama3(tmp_path / "t", max_length=16, stride=0, padding=True, truncation=True, model_max_length=64)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tmp_path / "t" / name, hf / name)
    (hf / "chat_template.jinja").write_text("t")
    plain = json.loads((hf / "tokenizer.json").read_text(encoding="utf-8"))
    cut = {"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0}
    pad = {"strategy": {"Fixed": 25}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    pad |= {"pad_type_id": 0, "pad_token": "<|end_of_text|>"}
    (hf / "tokenizer.json").write_text(json.dumps(plain | {"truncation": cut, "padding": pad}))
    convert_hf_to_megatron(hf=hf, output=tmp_path / "megatron")
    convert_megatron_to_hf(load=tmp_path / "megatron", output=tmp_path / "out")
    assert json.loads((tmp_path / "out" / "tokenizer.json").read_text(encoding="utf-8")) == plain
    said = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert not {"max_length", "stride", "padding", "truncation"} & set(said) and said["eos_token"] == "<|eot_id|>"
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=False)
    assert loaded.backend_tokenizer.truncation is None and loaded.backend_tokenizer.padding is None
    assert (
        len(loaded.backend_tokenizer.encode("word " * 50).ids) > 25
        and len(loaded.backend_tokenizer.encode("a").ids) == 1
    )
    assert tokenizer_fingerprint(tmp_path / "out") == tokenizer_fingerprint(hf)
    assert template_fingerprint(tmp_path / "out") == template_fingerprint(hf) is not None
