"""What is handed to Transformer Engine, held against the sources of every version that is supported.

The sources are those of the published wheels (1 MB each, kept in the user's cache folder), and of an installed one.
Nothing of them is run: signatures, assertions and comparisons are read from their syntax trees, and so are
megatron-core's calls.
"""

import ast
import dataclasses
import importlib.util
import inspect
import os
import re
import subprocess
import sys
import typing
import zipfile
from pathlib import Path

import pytest

from megatron_ultralong.config.sections import ParallelConfig
from megatron_ultralong.context_parallel import core_attention
from megatron_ultralong.engine import mcore, transformer_engine
from megatron_ultralong.model.build import transformer_config

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
WHEELS = CACHE / "megatron_ultralong" / "transformer_engine"
READ = ("2.9", "2.11", "2.14", "2.17", "2.20")
"""Minor versions of the supported range whose sources are read."""
NO_INDEX = (
    "name resolution",
    "NewConnectionError",
    "ConnectTimeout",
    "ReadTimeout",
    "ProxyError",
    "Network is unreach",
)
ATTENTION = "attention/dot_product_attention/dot_product_attention.py"
CONTEXT = "attention/dot_product_attention/context_parallel.py"
LAYERS = {
    "TELinear": ("module/linear.py", "Linear"),
    "TELayerNormColumnParallelLinear": ("module/layernorm_linear.py", "LayerNormLinear"),
}
# Branches of megatron-core that a run of ours never takes; test_switched_off says so.
OFF = (
    "self.config.tp_comm_overlap",
    "self.config.tp_comm_overlap and parallel_mode != 'duplicated'",
    "num_splits is not None",
)

Read = typing.Callable[[str], ast.Module]


def wheel(version: str) -> Path:
    """The wheel of the newest release of a minor version, downloaded once."""
    found = sorted(WHEELS.glob(f"transformer_engine-{version}.*.whl"))
    if not found:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "1", "--timeout", "15"]
        command += ["--only-binary", ":all:", "--dest", str(WHEELS), f"transformer-engine=={version}.*"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode and any(sign in done.stderr for sign in NO_INDEX) and not os.environ.get("CI"):
            pytest.skip("no package index can be reached, and Transformer Engine's sources come from one")
        assert done.returncode == 0, done.stderr
        found = sorted(WHEELS.glob(f"transformer_engine-{version}.*.whl"))
    return found[-1]


def from_wheel(path: Path) -> Read:
    archive = zipfile.ZipFile(path)
    return lambda name: ast.parse(archive.read(f"transformer_engine/pytorch/{name}"))


INSTALLED = importlib.util.find_spec("transformer_engine")


@pytest.fixture(scope="module", params=[*READ, *["installed"] * (INSTALLED is not None)])
def source(request: pytest.FixtureRequest) -> Read:
    """Reads a file of transformer_engine.pytorch as a syntax tree."""
    if request.param != "installed":
        return from_wheel(wheel(request.param))
    assert INSTALLED is not None and INSTALLED.origin is not None
    return lambda name: ast.parse((Path(INSTALLED.origin).parent / "pytorch" / name).read_text())


@pytest.fixture(scope="module")
def wrappers() -> ast.Module:
    """megatron-core's wrappers of Transformer Engine."""
    spec = importlib.util.find_spec("megatron.core.extensions.transformer_engine")
    assert spec is not None and spec.origin is not None
    return ast.parse(Path(spec.origin).read_text())


def find(tree: ast.AST, *path: str) -> typing.Any:
    """A class or function by its name, in a module or class."""
    for name in path:
        kinds = (ast.ClassDef, ast.FunctionDef)
        tree = next(node for node in ast.iter_child_nodes(tree) if isinstance(node, kinds) and node.name == name)
    return tree


def parameters(function: ast.FunctionDef) -> set[str]:
    return {argument.arg for argument in [*function.args.args, *function.args.kwonlyargs]}


def taken(node: ast.AST) -> typing.Iterator[ast.AST]:
    """All nodes but those of branches that are off."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) in OFF):
            yield from taken(child)


def handed(function: ast.FunctionDef, call: str) -> set[str]:
    """Keywords that a wrapper hands on: those written in the call, and constants that it fills into dictionaries."""
    names = set()
    for node in taken(function):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in (call, "dict"):
            names |= {keyword.arg for keyword in node.keywords if keyword.arg is not None}
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
            names |= {node.targets[0].slice.value} if isinstance(node.targets[0].slice, ast.Constant) else set()
    return names


def dropped(wrapper: ast.ClassDef) -> set[str]:
    """Fields of PackedSeqParams that megatron-core's wrapper keeps to itself, whatever the version."""
    old = [node for node in ast.walk(wrapper) if isinstance(node, ast.If) and "version()" in ast.unparse(node.test)]
    by_version = {id(node) for branch in old for node in ast.walk(branch)}
    return {
        node.args[0].value
        for node in ast.walk(wrapper)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "self.kept_packed_seq_params.discard"
        and isinstance(node.args[0], ast.Constant)
        and id(node) not in by_version
    }


def test_the_arguments_of_its_attention_exist(source: Read, wrappers: ast.Module) -> None:
    tree, ours = source(ATTENTION), find(wrappers, "TEDotProductAttention")
    built = handed(find(ours, "__init__"), "super().__init__")
    assert {"cp_group", "cp_global_ranks", "cp_stream", "cp_comm_type", "num_gqa_groups", "softmax_scale"} <= built
    assert built <= parameters(find(tree, "DotProductAttention", "__init__"))
    packed = {field.name for field in dataclasses.fields(mcore.PackedSeqParams)} - dropped(ours)
    called = handed(find(ours, "forward"), "super().forward") | packed
    assert {"attn_mask_type", "cu_seqlens_q_padded", "max_seqlen_kv", "qkv_format"} <= called
    assert called <= parameters(find(tree, "DotProductAttention", "forward"))


@pytest.mark.parametrize("name", LAYERS)
def test_the_arguments_of_its_layers_exist(source: Read, wrappers: ast.Module, name: str) -> None:
    file, theirs = LAYERS[name]
    built = handed(find(wrappers, name, "__init__"), "super().__init__")
    assert {"in_features", "out_features", "tp_group", "sequence_parallel"} <= built
    assert built <= parameters(find(source(file), theirs, "__init__"))


def test_its_kinds_of_communication_are_those_of_the_configuration(source: Read) -> None:
    dispatch = find(source(CONTEXT), "attn_forward_func_with_cp")
    compared = {
        constant.value
        for node in ast.walk(dispatch)
        if isinstance(node, ast.Compare) and ast.unparse(node.left) == "cp_comm_type"
        for constant in ast.walk(node)
        if isinstance(constant, ast.Constant)
    }
    ours = typing.get_type_hints(ParallelConfig)["cp_comm_type"]
    assert compared == set(typing.get_args(ours))


def asserted(tree: ast.AST) -> dict[str, str]:
    """Conditions that a piece of code asserts, with what it says."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    return {ast.unparse(node.test): ast.unparse(node.msg or node.test) for node in found}


def test_what_the_configuration_refuses_is_refused_there(source: Read) -> None:
    """check.py and document_zigzag.py name these before a run starts."""
    tree = source(CONTEXT)
    dispatch = find(tree, "attn_forward_func_with_cp")
    by_heads = asserted(find(tree, "AttnFuncWithCPAndQKVOA2A"))
    assert "q.shape[-2] % cp_size == 0 and k.shape[-2] % cp_size == 0" in by_heads
    (two_levels,) = [node for node in dispatch.body if is_two_levels(node)]
    conditions = asserted(ast.Module(two_levels.body, []))
    assert "[a2a_cp_group, p2p_cp_group]" in conditions["isinstance(cp_group, list) and len(cp_group) == 2"]
    told = " ".join((ast.get_docstring(dispatch) or "").split())
    assert re.search(r"sequence lengths? to be, or (are|be) padded to be, divisible by \(cp_size \* 2\)", told)


@pytest.mark.parametrize("version", READ)
def test_documents_are_taken_from_the_versions_that_are_stated(version: str) -> None:
    tree = from_wheel(wheel(version))(CONTEXT)
    dispatch = find(tree, "attn_forward_func_with_cp")
    (two_levels,) = [node for node in dispatch.body if is_two_levels(node)]
    ways = {
        "p2p": find(tree, "AttnFuncWithCPAndKVP2P"),
        "a2a": find(tree, "AttnFuncWithCPAndQKVOA2A"),
        "all_gather": find(tree, "AttnFuncWithCPAndKVAllGather"),
        "a2a+p2p": ast.Module(two_levels.body, []),
    }
    number = tuple(map(int, version.split(".")))
    for kind, way in ways.items():
        refused = "qkv_format != 'thd'" in asserted(way)
        assert refused == (number < transformer_engine.DOCUMENTS[kind]), kind


def is_two_levels(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "cp_comm_type == 'a2a+p2p'"


def test_our_own_calls_fit_megatron_cores_wrapper(wrappers: ast.Module) -> None:
    wrapper = find(wrappers, "TEDotProductAttention")
    tree = ast.parse(inspect.getsource(core_attention))
    (call,) = [
        node
        for node in ast.walk(find(tree, "TECoreAttention", "forward"))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "self.attention"
    ]
    positional = [argument.arg for argument in find(wrapper, "forward").args.args[1:]]
    assert [ast.unparse(argument) for argument in call.args] == positional[: len(call.args)]
    assert {keyword.arg for keyword in call.keywords} <= set(positional)
    built = inspect.signature(core_attention.RingCoreAttention.__init__).parameters  # as SelfAttention builds either
    assert set(built) <= parameters(find(wrapper, "__init__"))


def test_switched_off() -> None:
    llama = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 64,
    }
    parallel = ParallelConfig(attention="te", context=8, ulysses=2, cp_comm_type="a2a+p2p", recompute="selective")
    config = transformer_config(llama, parallel, "bf16")
    assert not config.tp_comm_overlap and not config.batch_invariant_mode and not config.apply_rope_fusion
    assert (config.cp_comm_type, config.hierarchical_context_parallel_sizes) == ("a2a+p2p", [2, 4])
    assert (config.recompute_granularity, config.recompute_modules) == ("selective", ["mlp"])


def test_the_extra_of_the_package_is_the_supported_range() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    oldest, (major, minor) = transformer_engine.named(transformer_engine.OLDEST), transformer_engine.NEWEST
    wanted = f'"transformer-engine[pytorch]>={oldest},<{major}.{minor + 1}"'
    assert wanted in text
    assert INSTALLED is not None or wanted in str(transformer_engine.problem())
