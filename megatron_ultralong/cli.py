"""Command lines from typed functions; the only file that imports tyro.

A tool is a docstring and `run(function)`: the flags, their types and their help come from the function's
signature and docstring. A `UserError` becomes one sentence on stderr and exit status 2.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

from megatron_ultralong.errors import UserError


def run(function: Callable[..., Any], arguments: Sequence[str] | None = None) -> None:
    """Parse the command line into `function`'s parameters, call it, and exit with its status.

    Exit status: 0, or 2 for a bad flag or a `UserError`, or 130 after Ctrl-C.
    """
    import tyro

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        tyro.cli(function, args=arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)
