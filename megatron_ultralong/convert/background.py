"""An export beside a run: `python -m megatron_ultralong.convert.background CHECKPOINT OUTPUT PARENT`.

training/exporting.py starts it. It has the lowest priority and one thread, touches no GPU, and ends with the run that
started it. What it writes is what tools/convert_megatron_to_hf.py writes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main() -> None:
    """Export CHECKPOINT to OUTPUT, unless the process PARENT has ended; exit status 2 for what a user can mend."""
    load, output, parent = sys.argv[1:]
    os.nice(19)
    import torch

    from megatron_ultralong.cli import exit_status
    from megatron_ultralong.convert.megatron_to_hf import convert_megatron_to_hf
    from megatron_ultralong.processes import die_with_parent

    die_with_parent(int(parent))
    torch.set_num_threads(1)
    with exit_status():
        convert_megatron_to_hf(load=Path(load), output=Path(output), overwrite=True)


if __name__ == "__main__":
    main()
