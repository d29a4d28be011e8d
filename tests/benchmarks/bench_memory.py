"""The memory plan against the rehearsal, layout by layout: bytes of the peak, its error, and that of every part.

    python tests/benchmarks/bench_memory.py [--examples] [--only TEXT] [--cpu]

A table in Markdown, a line as soon as its layout is rehearsed, and at the end how many plans a second are made.
"""

from __future__ import annotations

import argparse
import time

from megatron_ultralong.planning.memory import predict
from tests.planning.layouts import MORE, QUICK, Layout, examples
from tests.planning.rehearsed_memory import PARTS, both, errors


def row(layout: Layout, gpu: bool) -> str:
    found, planned = both(layout, gpu)
    wrong = errors(found.memory, planned)
    shown = " | ".join(f"{100 * wrong[part]:+.1f}" if getattr(planned, part) else "" for part in PARTS)
    total = f"{found.memory.total / 1e9:.3f} | {planned.total / 1e9:.3f} | {100 * wrong['total']:+.2f}"
    return f"| {layout.name} | {total} | {shown} | {planned.moment} | {found.seconds:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", action="store_true", help="the examples at full depth as well")
    parser.add_argument("--only", default="", help="layouts whose name contains this")
    parser.add_argument("--cpu", action="store_true", help="as on a CPU")
    options = parser.parse_args()
    layouts = [*QUICK, *MORE, *(examples() if options.examples else [])]
    print("| layout | rehearsed, GB | formula, GB | error, % | " + " | ".join(PARTS) + " | at | s |")
    print("|---" * (len(PARTS) + 6) + "|")
    for layout in layouts:
        if options.only in layout.name:
            print(row(layout, not options.cpu), flush=True)
    began, count = time.process_time(), 2000
    for place in range(count):
        layout = layouts[place % len(layouts)]
        predict(layout.config, layout.model, layout.processes, 0, True)
    print(f"\n{count / (time.process_time() - began):,.0f} plans a second")


if __name__ == "__main__":
    main()
