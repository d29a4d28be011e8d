"""A folder that brings code of its own: it is never run, whatever stands on standard input."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.conftest import write_lines
from tests.data.tokenizer.shapes import llama3

ROOT = Path(__file__).parents[3]
CODE = """
import pathlib
pathlib.Path({marker!r}).touch()
from transformers import PretrainedConfig, PreTrainedTokenizerFast
class Evil(PreTrainedTokenizerFast): pass
class EvilConfig(PretrainedConfig):
    model_type = "evil"
"""
LOAD = """
from pathlib import Path
from megatron_ultralong.errors import UserError
try:
    {call}
except UserError as error:
    raise SystemExit(f"error: {{error}}")
"""
CALLS = {
    "a tokenizer": (
        "from megatron_ultralong.data.tokenizer.tokenizer import load_tokenizer; load_tokenizer(Path({folder!r}))"
    ),
    "a model": "import torch; from megatron_ultralong.evaluation.backends import hf; "
    "hf._load(Path({folder!r}), torch.float32)",
}


@pytest.fixture
def folder(tmp_path):
    path = llama3(tmp_path / "t", tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})
    (path / "evil.py").write_text(CODE.format(marker=str(tmp_path / "ran")))
    maps = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.Evil"}
    (path / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": maps}))
    return path


def answered_yes(command, tmp_path):
    """Run a command with a yes on standard input: `echo y | command`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "cache")}
    return subprocess.run(command, input="y\n" * 9, env=environment, capture_output=True, text=True)


def test_the_code_would_run_if_it_were_trusted(folder, tmp_path):
    """Or this module would prove nothing."""
    code = f"from transformers import AutoTokenizer; AutoTokenizer.from_pretrained({str(folder)!r})"
    answered_yes([sys.executable, "-c", code], tmp_path)
    assert (tmp_path / "ran").exists()


def test_tokenizing_runs_no_code(folder, tmp_path):
    path = write_lines(tmp_path / "in.jsonl", [{"text": "some text"}])
    command = [sys.executable, ROOT / "tools" / "preprocess_data.py", "--input", path]
    done = answered_yes([*command, "--output-prefix", tmp_path / "c", "--tokenizer-model", folder], tmp_path)
    assert done.returncode == 2 and "the tokenizer cannot be loaded" in done.stderr.splitlines()[-1]
    assert "trust_remote_code" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "ran").exists() and not (tmp_path / "c.json").exists()


@pytest.mark.parametrize("call", CALLS)
def test_loading_runs_no_code(folder, tmp_path, call):
    code = LOAD.format(call=CALLS[call].format(folder=str(folder)))
    done = answered_yes([sys.executable, "-c", code], tmp_path)
    assert done.returncode == 1 and "error: " in done.stderr and "cannot be loaded" in done.stderr
    assert not (tmp_path / "ran").exists()


FILES = [
    path
    for room in ("megatron_ultralong", "tools", "examples", "tests")
    for path in sorted((ROOT / room).rglob("*.py"))
]


def test_every_class_that_could_run_code_is_told_not_to():
    """Auto classes take a folder's code where `trust_remote_code` is not said to be False."""
    told = 0
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if node.func.attr in ("from_pretrained", "from_config") and "Auto" in ast.unparse(node.func.value):
                words = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert words.get("trust_remote_code") == "False", f"{path}:{node.lineno}"
                told += 1
    assert told > 10
