"""Which kernel a device runs: by what it takes, by what was asked for, and by what passed its check."""

import logging

import pytest
import torch

from megatron_ultralong.context_parallel import kernel_check, kernel_choice, kernels, kernels_cpu, kernels_gpu
from megatron_ultralong.engine import device
from megatron_ultralong.errors import UserError

CPU = torch.device("cpu")
FLASH, CUDNN = "PyTorch's flash kernel", "cuDNN's kernel"


@pytest.fixture(autouse=True)
def afresh():
    """No choice of one test is another's."""
    kernel_choice.choose.cache_clear()
    yield
    kernel_choice.use("auto")
    kernel_choice._verdicts.clear()


def heads(head_dim=128, dtype=torch.bfloat16, where=CPU):
    return kernel_choice.Heads(where, dtype, 8, 2, head_dim)


def chosen(kind, documents=False, deterministic=False):
    return [kernel_choice.choose(kind, documents, way, deterministic).title for way in (False, True)]


@pytest.mark.parametrize(
    ("capability", "head_dim", "documents", "deterministic", "forward", "backward"),
    [
        ((8, 0), 128, False, False, FLASH, FLASH),
        ((9, 0), 128, False, False, CUDNN, CUDNN),
        ((9, 0), 128, False, True, CUDNN, FLASH),
        ((9, 0), 128, True, False, FLASH, FLASH),
        ((9, 0), 256, False, False, FLASH, FLASH),
    ],
)
def test_what_a_gpu_runs_without_flash_attn(
    monkeypatch, capability, head_dim, documents, deterministic, forward, backward
):
    monkeypatch.setattr(kernels_gpu, "flash_attn", lambda major: None)
    with device.assume_gpu(capability):
        assert chosen(heads(head_dim), documents, deterministic) == [forward, backward]


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("auto", "flash-attn 3"),
        ("flash2", "flash-attn 2"),
        ("cudnn", CUDNN),
        ("torch", FLASH),
        ("flash3", "flash-attn 3"),
    ],
)
def test_a_kernel_that_is_asked_for_comes_first(monkeypatch, name, title):
    monkeypatch.setattr(kernels_gpu, "flash_attn", lambda major: kernels_gpu)
    kernel_choice.use(name)
    with device.assume_gpu():
        assert chosen(heads()) == [title, title]
        assert chosen(heads(), documents=True)[0] == ("flash-attn 3" if name == "cudnn" else title)


def test_in_fp32_a_gpu_uses_plain_products_and_says_that_they_are_slow(caplog):
    with device.assume_gpu():
        assert chosen(heads(dtype=torch.float32)) == ["plain matrix products"] * 2
    assert "which is slow" in caplog.text


def test_too_old_a_gpu_and_odd_heads_are_refused():
    with device.assume_gpu((7, 5)), pytest.raises(UserError, match=r"compute capability 8\.0"):
        chosen(heads())
    with device.assume_gpu(), pytest.raises(UserError, match="a multiple of 8, and these have 100"):
        chosen(heads(100))


def test_the_choice_is_logged_once(caplog):
    q = torch.randn(2, 4, 4, 16)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            kernels.forward(q, q, q, True, 0.3)
    assert [record.message for record in caplog.records] == [
        "Attention forward: PyTorch's flash kernel for CPUs (cpu, torch.float32, head dim 16)."
    ]


def backward_that(change):
    """The CPU's backward, whose results then go through `change`."""
    return lambda *arguments: change(*kernels_cpu.backward(*arguments))


def fails(*_):
    raise RuntimeError("no engine found\nat line 7")


WRONG = {
    "as it should be": (kernels_cpu.forward, kernels_cpu.backward, None),
    "no scale": (
        lambda q, k, v, causal, scale, bounds: kernels_cpu.forward(q, k, v, causal, 1.0, bounds),
        kernels_cpu.backward,
        "on a causal square out is off by",
    ),
    "no mask": (
        lambda q, k, v, causal, scale, bounds: kernels_cpu.forward(q, k, v, False, scale, bounds),
        kernels_cpu.backward,
        "on a causal square out is off by",
    ),
    "documents that see each other": (
        lambda q, k, v, causal, scale, bounds: kernels_cpu.forward(q, k, v, causal, scale, None),
        kernels_cpu.backward,
        "on documents out is off by",
    ),
    "log-sum-exp to the base of 2": (
        lambda *a: (lambda out, lse: (out, lse * 1.4427))(*kernels_cpu.forward(*a)),
        kernels_cpu.backward,
        "on a causal square log-sum-exp is off by",
    ),
    "a gradient off by 2 %": (
        kernels_cpu.forward,
        backward_that(lambda dq, dk, dv: (dq, dk * 1.02, dv)),
        "on a causal square dk is off by",
    ),
    "not a number": (
        kernels_cpu.forward,
        backward_that(lambda dq, dk, dv: (dq, dk, dv * float("nan"))),
        "on a causal square dv is off by nan",
    ),
    "an error": (kernels_cpu.forward, fails, "on a causal square it fails with RuntimeError: no engine found"),
    "another shape": (
        kernels_cpu.forward,
        backward_that(lambda dq, dk, dv: (dq, dk[:, :1], dv)),
        "on a causal square it fails with ValueError",
    ),
}


def check(forward, backward, dtype=torch.bfloat16):
    return kernel_check.problem(forward, backward, heads=(8, 2), head_dim=64, dtype=dtype, device=CPU, documents=True)


@pytest.mark.parametrize("case", WRONG)
def test_the_check_finds_a_kernel_that_is_wrong(case):
    forward, backward, problem = WRONG[case]
    found = check(forward, backward)
    assert found is None if problem is None else found.startswith(problem), found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_cpus_kernel_passes_in_other_dtypes(dtype):
    assert check(kernels_cpu.forward, kernels_cpu.backward, dtype) is None


def test_what_failed_is_passed_over_down_to_plain_products(monkeypatch, caplog):
    """As if this were a GPU whose cuDNN is wrong on one rank, and whose flash operator is on all."""
    monkeypatch.setattr(kernels_gpu, "flash_attn", lambda major: None)
    with device.assume_gpu():
        kernel_choice.pass_over({"cudnn": "on a rectangle dq is off by 0.3"}, heads())
        monkeypatch.setattr(kernel_choice, "_verdict", lambda kernel, kind: kernel_choice._verdicts.get((kernel, kind)))
        assert chosen(heads()) == [FLASH, FLASH]
        kernel_choice.pass_over({"torch": "it fails"}, heads())
        assert chosen(heads()) == ["plain matrix products"] * 2


def test_a_gpus_kernel_on_a_cpu_is_refused():
    with pytest.raises(UserError, match=r'parallel\.kernel is "cudnn", which needs a GPU'):
        kernel_choice.settle("cudnn", heads())
    kernel_choice.settle("torch", heads())
