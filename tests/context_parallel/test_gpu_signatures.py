"""What we hand to the GPU's kernels, by the names that their own sources give to it. No GPU, and nothing is computed.

PyTorch's operators have their schemas in every build. flash-attn 2 and 3 are read from the published source of
flash-attn (8 MB a version, kept in build/): our calls are bound to its functions' own signatures.
"""

import ast
import functools
import inspect
import os
import subprocess
import sys
import tarfile
import types
import typing
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_ultralong.context_parallel import kernels_gpu

SCALE = 0.3
BOUNDS = (0, 5, 64)
CASES = [(64, True, None), (32, False, None), (64, True, BOUNDS)]
SOURCES = Path(__file__).parents[2] / "build" / "flash_attn"


def block(keys, device):
    shapes = [(2, rows, heads, 16) for rows, heads in ((64, 4), (keys, 2), (keys, 2), (64, 4))]
    return [torch.empty(shape, dtype=torch.bfloat16, device=device) for shape in shapes]


class Handed(TorchDispatchMode):
    """Operators' arguments by the names of their schemas."""

    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        names = [argument.name for argument in func._schema.arguments]
        handed = {argument.name: argument.default_value for argument in func._schema.arguments}
        handed |= {**dict(zip(names, args, strict=False)), **(kwargs or {})}
        self.calls[func.overloadpacket.__name__] = handed
        return func(*args, **(kwargs or {}))


def assert_shapes(q, k, v, out, lse, found):
    """As the operators themselves give them on PyTorch's meta device."""
    assert (out.shape, out.dtype, lse.shape, lse.dtype) == (q.shape, torch.bfloat16, q.shape[:3], torch.float32)
    assert [x.shape for x in found] == [q.shape, k.shape, v.shape]


def matches(handed, wanted):
    assert {name: handed[name] for name in wanted} == wanted


@pytest.mark.parametrize(("keys", "causal", "bounds"), CASES)
def test_pytorchs_flash_operator(keys, causal, bounds):
    q, k, v, grad = block(keys, "meta")
    with Handed() as handed:
        out, lse = kernels_gpu.torch_flash_forward(q, k, v, causal, SCALE, bounds)
        found = kernels_gpu.torch_flash_backward(grad, q, k, v, out, lse, causal, SCALE, bounds)
    assert_shapes(q, k, v, out, lse, found)
    lengths = {"max_q": 64, "max_k": keys} if bounds is None else {"max_q": 59, "max_k": 59}
    wanted = {**lengths, "dropout_p": 0.0, "is_causal": causal, "scale": SCALE}
    forward, backward = (handed.calls[f"_flash_attention_{way}"] for way in ("forward", "backward"))
    matches(forward, {**wanted, "return_debug_mask": False})
    matches(backward, wanted)
    for call in (forward, backward):
        bound = {call["cum_seq_q"], call["cum_seq_k"]}
        assert bound == {None} if bounds is None else [(x.shape, x.dtype) for x in bound] == [((5,), torch.int32)]
    assert backward["logsumexp"].shape == ((2, 4, 64) if bounds is None else (4, 128))
    assert [backward[name].shape[-2] for name in ("grad_out", "query", "key", "value", "out")] == [4, 4, 2, 2, 4]


@pytest.mark.parametrize(("keys", "causal"), [case[:2] for case in CASES[:2]])
def test_pytorchs_cudnn_operator(keys, causal):
    q, k, v, grad = block(keys, "meta")
    with Handed() as handed:
        out, lse = kernels_gpu.cudnn_forward(q, k, v, causal, SCALE, None)
        found = kernels_gpu.cudnn_backward(grad, q, k, v, out, lse, causal, SCALE, None)
    assert_shapes(q, k, v, out, lse, found)
    wanted = {"attn_bias": None, "dropout_p": 0.0, "is_causal": causal, "scale": SCALE}
    name = "_scaled_dot_product_cudnn_attention"
    matches(handed.calls[name], {**wanted, "compute_log_sumexp": True, "return_debug_mask": False})
    backward = handed.calls[f"{name}_backward"]
    matches(backward, {**wanted, "cum_seq_q": None, "cum_seq_k": None, "max_q": 64, "max_k": keys})
    assert backward["logsumexp"].shape == (2, 4, 64, 1)
    assert [backward[part].shape[1] for part in ("grad_out", "query", "key", "value", "out")] == [4, 4, 2, 2, 4]


@functools.cache
def published(version):
    """The source of the newest release of a minor version, downloaded once."""
    if not list(SOURCES.glob(f"flash_attn-{version}.*.tar.gz")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
        command += ["--no-binary", ":all:", "--dest", str(SOURCES), f"flash-attn=={version}.*"]
        environment = {**os.environ, "FLASH_ATTENTION_SKIP_CUDA_BUILD": "TRUE"}  # its setup.py only names itself
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            pytest.skip(f"flash-attn's source cannot be had: {done.stderr.strip().splitlines()[-1]}")
    return tarfile.open(sorted(SOURCES.glob(f"flash_attn-{version}.*.tar.gz"))[-1])


def package(version, file, calls):
    """Functions with the signatures of a published file, which note what they are handed and give empty results."""
    archive = published(version)
    name = next(member for member in archive.getnames() if member.endswith(f"/{file}"))
    tree = ast.parse(archive.extractfile(name).read())
    scope = {"torch": torch, **vars(typing)}
    found = types.SimpleNamespace()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("_flash_attn_") and "fake" not in node.name:
            node.decorator_list, node.body = [], ast.parse("pass").body
            exec(compile(ast.fix_missing_locations(ast.Module([node], [])), file, "exec"), scope)
            setattr(found, node.name, functools.partial(note, calls, node.name, inspect.signature(scope[node.name])))
    return found


def note(calls, name, signature, *args, **keywords):
    bound = signature.bind(*args, **keywords)
    calls[name] = bound.arguments
    q = bound.arguments["q"]
    return q, torch.empty((*q.shape[:-3], q.shape[-2], q.shape[-3])), None, None


@pytest.mark.slow
@pytest.mark.parametrize(("keys", "causal", "bounds"), CASES)
@pytest.mark.parametrize(
    ("major", "version", "file"),
    [
        (2, "2.7", "flash_attn/flash_attn_interface.py"),
        (2, "2.8", "flash_attn/flash_attn_interface.py"),
        (3, "2.8", "hopper/flash_attn_interface.py"),
    ],
)
def test_flash_attn(monkeypatch, major, version, file, keys, causal, bounds):
    calls = {}
    theirs = package(version, file, calls)
    monkeypatch.setattr(kernels_gpu, "flash_attn", lambda asked: theirs if asked == major else None)
    q, k, v, grad = block(keys, "cpu")
    forward, backward = (getattr(kernels_gpu, f"flash_attn_{major}_{way}") for way in ("forward", "backward"))
    out, lse = forward(q, k, v, causal, SCALE, bounds)
    assert (out.shape, lse.shape) == (q.shape, (2, 64, 4))
    found = backward(grad, q, k, v, out, lse, causal, SCALE, bounds)
    packed = "varlen_" if bounds is not None and major == 2 else ""
    for way in ("forward", "backward"):
        handed = calls[f"_flash_attn_{packed}{way}"]
        assert handed["softmax_scale"] == SCALE and handed.get("dropout_p", 0.0) == 0.0
        assert handed.get("causal", handed.get("is_causal")) == causal
        if bounds is not None:
            assert (handed["max_seqlen_q"], handed["max_seqlen_k"]) == (59, 59)
            assert handed["cu_seqlens_q"].tolist() == handed["cu_seqlens_k"].tolist() == [0, 5, 64, 69, 128]
    parts = {"dq": found[0], "dk": found[1], "dv": found[2]}
    assert all(handed[name].data_ptr() == x.data_ptr() and x.is_contiguous() for name, x in parts.items())
    assert handed["softmax_lse"].shape == ((2, 4, 64) if bounds is None else (4, 128))
    assert [handed[name].shape[-2] for name in ("dout", "q", "k", "v", "out")] == [4, 4, 2, 2, 4]
    assert handed["deterministic"] is False
