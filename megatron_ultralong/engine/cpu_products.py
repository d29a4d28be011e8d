"""bf16 matrix products in fp32, on CPUs that have no instructions for them.

oneDNN multiplies bf16 on x86 from AVX-512 on, and on Arm with its bf16 extension. On any other CPU (AVX2: most laptops)
PyTorch has plain loops instead, which make 0.3 to 22 GFLOP/s of one core where fp32 makes 39 to 75
(tests/benchmarks/bench_cpu_products.py). There, factors are widened, multiplied in fp32 and the product rounded to bf16
once, which is what the instructions do too: the same to rounding. It costs fp32 copies of one product's tensors while
it is made, and some 7 microseconds a product of any dtype.

aten's own kernels are replaced, so that products inside megatron-core and in backward are widened too.
"""

from __future__ import annotations

import functools
import logging
import warnings
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

_PRODUCTS = {
    "mm": ("mm.out",),
    "addmm": ("addmm.out", "addmm_"),
    "bmm": ("bmm.out",),
    "baddbmm": ("baddbmm.out", "baddbmm_"),
}
"""aten's products, and the same into a tensor that is there."""

_library: torch.library.Library | None = None


@functools.lru_cache(maxsize=1)
def has_bf16() -> bool:
    """Whether this CPU multiplies bf16 as fast as fp32, or faster."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def is_slow(x: Tensor) -> bool:
    """Whether products of such a tensor on this CPU are better made in fp32."""
    return x.dtype is torch.bfloat16 and not has_bf16()


def ensure_fast() -> None:
    """`widen`, where this CPU does not multiply bf16."""
    if not has_bf16():
        widen()


def widen() -> None:
    """Make every bf16 product of this process on its CPU in fp32 from now on. A second call does nothing."""
    global _library
    if _library is not None:
        return
    if not hasattr(torch.library, "get_kernel"):
        logger.warning(
            "This CPU has no bf16 matrix instructions, and PyTorch %s multiplies by plain loops, 3 to 150 times slower "
            'than in fp32. Set train.precision to "fp32", or take PyTorch 2.9 or newer.', torch.__version__,
        )  # fmt: skip
        return
    _library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*verrid", UserWarning)  # which is what is meant
        for name, others in _PRODUCTS.items():
            product = torch.library.get_kernel(f"aten::{name}", "CPU")
            _library.impl(name, functools.partial(_new, product), "CPU", with_keyset=True)
            for written in others:
                own = torch.library.get_kernel(f"aten::{written}", "CPU")
                _library.impl(written, functools.partial(_written, product, own), "CPU", with_keyset=True)
    logger.info("This CPU has no bf16 matrix instructions: bf16 products are made in fp32.")


def _new(product: Any, keys: Any, *tensors: Tensor, **options: Any) -> Tensor:
    """A product into a tensor of its own."""
    widened = is_slow(tensors[-1])
    found: Tensor = product.call_boxed(keys, *(x.float() if widened else x for x in tensors), **options)
    return found.bfloat16() if widened else found


def _written(product: Any, own: Any, keys: Any, *tensors: Tensor, **options: Any) -> Tensor:
    """A product into `out`, or into the first tensor."""
    if not is_slow(tensors[-1]):
        found: Tensor = own.call_boxed(keys, *tensors, **options)
        return found
    target: Tensor = options.pop("out", tensors[0])
    found = product.call_boxed(keys, *(x.float() for x in tensors), **options)
    return target.resize_(found.shape).copy_(found)
