"""bf16 products in fp32: the same to one rounding, and products of every other dtype untouched."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_ultralong.engine import cpu_products
from tests.engine.products import DTYPES, factors, products

ROOT = Path(__file__).parents[2]
Found = dict[torch.dtype, dict[str, Tensor]]
replaces = pytest.mark.skipif(not hasattr(torch.library, "get_kernel"), reason="PyTorch before 2.9 replaces nothing")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Found]:
    """By processes of their own: kernels are replaced for good."""
    folder, found = tmp_path_factory.mktemp("products"), {}
    for words in ([], ["widen"]):
        path = folder / f"{len(words)}.pt"
        subprocess.run([sys.executable, "-m", "tests.engine.products", str(path), *words], cwd=ROOT, check=True)
        found["".join(words)] = torch.load(path, weights_only=True)
    return found


@replaces
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_widened_products_are_the_same_tensors(made: dict[str, Found], dtype: torch.dtype) -> None:
    """Shapes, strides and dtypes; of every dtype but bf16 also the bytes."""
    before, after = made[""][dtype], made["widen"][dtype]
    assert before.keys() == after.keys()
    for name, wanted in before.items():
        found = after[name]
        assert (found.dtype, found.shape, found.stride()) == (dtype, wanted.shape, wanted.stride()), name
        if dtype is not torch.bfloat16:
            assert torch.equal(found, wanted), name


@replaces
def test_a_widened_product_is_rounded_once(made: dict[str, Found]) -> None:
    """Its error is bf16's rounding of the result (2^-8 of it) and fp32's of the sums, k 2^-24 of the sum of sizes."""
    exact = products(*(x.double() for x in factors(torch.bfloat16)))
    sizes = products(*(x.double().abs() for x in factors(torch.bfloat16)))
    for name, found in made["widen"][torch.bfloat16].items():
        bound = 2**-8 * exact[name].abs() + 64 * 2**-24 * sizes[name]
        assert ((found.double() - exact[name]).abs() <= bound).all(), name


@replaces
def test_products_of_megatron_core_on_this_cpu_are_fast_ones() -> None:
    """Where the CPU has bf16 instructions nothing is replaced; where it has none, products are made in fp32."""
    code = (
        "import torch; from megatron_ultralong.engine import cpu, cpu_products; cpu.activate()\n"
        "kernel = str(torch.library.get_kernel('aten::mm', 'CPU'))\n"
        "assert ('cpu_products' in kernel) is not cpu_products.has_bf16(), kernel"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_an_older_pytorch_says_that_bf16_is_slow(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(torch.library, "get_kernel", raising=False)
    monkeypatch.setattr(cpu_products, "_library", None)
    cpu_products.widen()
    assert 'Set train.precision to "fp32"' in caplog.text
    assert cpu_products._library is None
