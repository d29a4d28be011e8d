"""Draw build/loss_curves.json, which `pytest -m slow tests/training/test_layouts.py` writes.

python tests/benchmarks/plot_loss_curves.py docs/loss_curves.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def main() -> None:
    """Two panels: the loss of one process, and how far each layout is from it."""
    data = json.loads(Path("build/loss_curves.json").read_text())
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    steps = range(1, len(data["losses"]) + 1)
    left.plot(steps, data["losses"], color="black")
    left.set(xlabel="step", ylabel="loss of one process, nats a token")
    for name, differences in data["apart"].items():
        style = {"color": "black", "linestyle": "--"} if name.startswith("one process") else {}
        right.semilogy(steps, [max(x, 1e-9) for x in differences], label=name, **style)
    right.set(xlabel="step", ylabel="relative difference from it (fp32)")
    right.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(sys.argv[1], dpi=110)


if __name__ == "__main__":
    main()
