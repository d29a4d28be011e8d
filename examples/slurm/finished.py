"""Print the checkpoint of a run's last step, or say in one sentence why there is none yet (exit status 2).

python examples/slurm/finished.py RUN/extend
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    """Look at the newest step_N of the folder on the command line."""
    save = Path(sys.argv[1])
    steps = sorted(path.parent for path in save.glob("step_*/ultralong.json"))
    if not steps:
        stop(f"{save} holds no checkpoint; train first (extend, then sft)")
    last = json.loads((steps[-1] / "ultralong.json").read_text(encoding="utf-8"))
    wanted = last["run"]["train"]["steps"]
    if last["step"] < wanted and not (last.get("validation") or {}).get("ended"):  # by validation.patience
        stop(f"{save} has come to step {last['step']} of {wanted} only; submit that step again, it resumes")
    print(steps[-1])


def stop(sentence: str) -> None:
    """End with the sentence, as for everything that the user can mend."""
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
