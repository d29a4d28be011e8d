"""Documents to samples of one length: the specification in Python, the C++ that equals it, the index on disk."""

from megatron_ultralong.data.packing import _packing

_INTERFACE = 2  # as csrc/packing.cpp says; raised with every change of a kernel's arguments or results

if getattr(_packing, "INTERFACE", 1) != _INTERFACE:
    raise ImportError(
        f"{_packing.__file__} was built from other sources than these; build it again: "
        "python setup.py build_ext --inplace (or make test, which does)"
    )
