"""A base trained further at its own context on what the claims' tasks ask: `run.py base`, which made base/.

The quickstart's base finds one key and mixes the digits of several. Before an arm can keep or lose an ability at length
the base must have it: keys by name among others, all values of a key, a chain of variables. Its own data goes on
beside.
"""

from __future__ import annotations

from pathlib import Path

from _arms import Experiment, Run
from _stages import TINY, Commands, Stage

BATCH, MICRO = 16, 8
TEXT, NOTES, RULER = 1.0, 2.0, 4.0  # weights of what the samples are drawn from


def base_stages(experiment: Experiment, base: str, steps: int, seed: int, output: Path) -> list[Stage]:
    """The commands, each after what it reads; the last exports to `output`.

    Args:
        experiment: for the length and the costs.
        base: the model that is trained further.
        steps: of BATCH samples of the base's context.
        seed: of data and order.
        output: folder of the model.
    """
    commands = Commands(experiment, Run(next(iter(experiment.scales)), "base", seed), base)
    length, samples = experiment.context, steps * BATCH / (TEXT + NOTES + RULER)
    script = f"{TINY}/make_data.py"
    made = commands.add(
        "lessons", script, "base", "--output", "@out/data", "--count", str(max(64, int(samples * NOTES))),
        "--seed", str(seed), files=[script], estimate=samples * NOTES * 0.004,
    )  # fmt: skip
    data = commands.add("data", script, "extend", "--output", "@out/data", files=[script])
    asked = commands.made("ruler", data.at("data/corpus.jsonl"), length, int(samples * RULER * length / 2))
    sources: list[str] = []
    for name, written, packing, weight in (
        ("text", made.at("data/text.jsonl"), "concatenate", TEXT),
        ("notes", made.at(f"data/notes_{length}.jsonl"), "best-fit", NOTES),
        ("ruler", asked, "best-fit", RULER),
    ):
        index = commands.packed(name, commands.tokens(name, written), length, "--packing", packing)
        number = len(sources) // 4
        sources += [f"--data.sources.{number}.index", index, f"--data.sources.{number}.weight", f"{weight:g}"]
    checkpoint = commands.trained(
        "teach", "base", length, steps, BATCH, commands.converted(), "--model.init", "checkpoint", *sources,
        "--train.micro_batch_size", str(MICRO), "--optimizer.decay", "cosine", "--optimizer.learning_rate", "1e-3",
        "--optimizer.min_learning_rate", "1e-4", each=length,
    )  # fmt: skip
    commands.add(
        "taught", "tools/convert_megatron_to_hf.py", "--load", checkpoint, "--output", str(output.resolve()),
        "--overwrite", "--verify", "logits",
    )  # fmt: skip
    return commands.found
