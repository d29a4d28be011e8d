"""Triton's compiler, which makes machine code for GPUs on a machine without one."""

from __future__ import annotations

from typing import Any


def compile_for_gpus(kernel: Any, types: dict[str, str], constants: dict[str, int]) -> None:
    """Compile a kernel down to machine code for an A100 and an H100.

    Args:
        kernel: what triton.jit made.
        types: of its arguments; the others are 32-bit whole numbers.
        constants: values of those that are compiled in.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    for capability in (80, 90):
        source = ASTSource(kernel, signature, {(names.index(name),): n for name, n in constants.items()})
        built = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        assert f"sm_{capability}" in built.asm["ptx"] and len(built.asm["cubin"]) > 1000
