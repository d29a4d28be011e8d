"""tools/inspect_rope.py: what it prints of Llama-3.1 at a million tokens, its picture, and its refusals."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from _rope_report import angle_error, ratios, treatment, variants

from megatron_ultralong.checkpoint.description import Description
from megatron_ultralong.config.sections import RopeConfig
from megatron_ultralong.errors import UserError
from megatron_ultralong.rope import config_json
from megatron_ultralong.rope.recipes import ultralong
from tests.rope.real_configs import REAL


@pytest.fixture(scope="module")
def tool() -> Any:
    path = Path(__file__).parents[2] / "tools" / "inspect_rope.py"
    spec = importlib.util.spec_from_file_location("inspect_rope", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(REAL["Llama-3.1-8B"]))
    return tmp_path


def cells(text: str, first: str) -> list[str]:
    (line,) = [line.split() for line in text.splitlines() if line.split()[:1] == [first]]
    return line


def test_llama31_at_a_million_tokens(tool: Any, llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tool.main(model=llama, target=1048576, output=llama / "rope.png")
    text = capsys.readouterr().out
    #      i, wavelength, rotations, own, paper, coded, coded 1..32, llama3
    assert cells(text, "34") == ["34", "6,695.1", "1.224", "0.1902", "0.0818", "0.1496", "0.0662", "0.0818"]
    assert cells(text, "35") == ["35", "8,218.7", "0.997", "1/8", *["1/128"] * 4]
    assert "0.1 ln s + 1 = 1.4852; this rope multiplies cos and sin by 1." in text
    entries = json.loads(text[text.index("{") :])
    assert entries["rope_scaling"]["rope_type"] == "llama3" and entries["rope_scaling"]["factor"] == 128.0
    assert entries["max_position_embeddings"] == 1048576
    assert (llama / "rope.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert "\u2026" not in text  # nothing is cut off


def test_every_row(tool: Any, llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tool.main(model=llama / "config.json", output=llama / "rope.png", every_row=True)
    text = capsys.readouterr().out
    assert [cells(text, str(i))[0] for i in range(64)] and "..." not in text


def test_a_context_shorter_than_the_sample_of_positions(tool: Any, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps(REAL["Llama-3.1-8B"] | {"rope_scaling": None, "max_position_embeddings": 256})
    )
    tool.main(model=tmp_path, target=1024, output=tmp_path / "rope.png")
    assert "of the last 1,024 of 1,024 positions is 0.000." in capsys.readouterr().out


def test_what_no_entry_can_say_is_said(tool: Any, llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hot = RopeConfig(kind="yarn", temperature=True)
    tool.main(model=llama, target=1048576, rope=hot, output=llama / "rope.png")
    text = capsys.readouterr().out
    assert "The rotated channels of the exported queries are multiplied by 2.20582803: " in text


def test_a_checkpoint_of_a_run(tool: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    description = Description(REAL["Llama-3.1-8B"], ultralong(4194304), "", 7, {})
    description.write(tmp_path)
    tool.main(model=tmp_path, output=tmp_path / "rope.png")
    assert "s = 512: 4,194,304 tokens over 8,192." in capsys.readouterr().out


@pytest.mark.parametrize("name", ["Llama-3.2-1B", "Qwen3-8B, its YaRN entry", "Phi-3-mini-128k", "Phi-4-mini"])
def test_other_models(tool: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(REAL[name]))
    tool.main(model=tmp_path, output=tmp_path / "rope.png")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target": 4096}, "rope.target_length 4096 is below the original length 8192; "),
        ({"target": -1}, "--target -1 is negative; "),
        ({"output": Path("rope.pdf")}, "--output rope.pdf is no .png file; "),
        ({"model": Path("nowhere")}, "nowhere/config.json: the model's configuration is missing; "),
    ],
)
def test_what_cannot_be_shown_is_named(tool: Any, llama: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        tool.main(**{"model": llama, "target": 0, "output": llama / "rope.png"} | options)
    assert str(caught.value).startswith(said)
    assert not (llama / "rope.png").exists()


def test_a_config_json_without_sizes_is_named(tool: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="neither head_dim nor hidden_size and num_attention_heads are given"):
        tool.main(model=tmp_path)


def test_the_papers_form_and_llama3_are_one_column_twice() -> None:
    own = config_json.read(REAL["Llama-3.1-8B"])
    ropes = variants(own, ultralong(2097152))
    paper, llama3 = ropes["YaRN paper\n1..4"], ropes["llama3\n1..4"]
    assert (ratios(paper, 128) == ratios(llama3, 128)).all()
    assert [treatment(ratio, 256.0) for ratio in ratios(paper, 128)[[0, 34, 63]]] == ["kept", "0.0781", "1/256"]


def test_fp32_angles_lose_more_the_longer_the_context() -> None:
    errors = [angle_error(ultralong(length), 128) for length in (131072, 1048576, 4194304)]
    assert errors[0] < errors[1] < errors[2]
    assert errors[2] < 2 * (4194304 * 2**-24 * 2)  # rounded frequency and rounded angle: half an ulp and a few
