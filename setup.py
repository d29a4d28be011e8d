"""Builds the C++ extension; everything else about the package is in pyproject.toml. A failed build is an error."""

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup

setup(
    ext_modules=[
        Pybind11Extension(
            "megatron_ultralong.data.packing._packing",
            ["csrc/packing.cpp"],
            depends=["csrc/view.hpp", "csrc/index.hpp", "csrc/gather.hpp", "csrc/order.hpp", "csrc/parallel.hpp"],
            cxx_std=17,
            # No fused multiply-add: the blend must choose the same source on every machine.
            extra_compile_args=["-O3", "-Wall", "-Wextra", "-ffp-contract=off", "-pthread"],
            extra_link_args=["-pthread"],
        )
    ]
)
