"""A small run that mixes whole samples and short documents, beside the same run without the short ones.

    python tests/benchmarks/mixed_run.py [--output build/mixed_run]

The tiny model of examples/tiny_cpu goes from 256 to 1,024 tokens: in three steps of four on whole samples of Python's
standard library, in the fourth on paragraphs of this project's docs, of at most 256 tokens and isolated. Held-out
samples of both are scored by a step whose learning rate is 0. Prints the losses and a table; OUTPUT has the rest.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import subprocess
import sys
from pathlib import Path

from examples.tiny_cpu.make_data import documents
from megatron_ultralong.convert.hf_to_megatron import convert_hf_to_megatron
from megatron_ultralong.data.corpus.corpus import open_corpus
from megatron_ultralong.data.packing.index import PackOptions, write_packed_index
from megatron_ultralong.data.reading.dataset import PackedDataset
from megatron_ultralong.data.resampling.listing import read_documents, write_resampled
from megatron_ultralong.data.resampling.policy import LengthPolicy
from megatron_ultralong.data.tokenizer.tokenizer import load_tokenizer
from megatron_ultralong.data.tokenizing.documents import Fields
from megatron_ultralong.data.tokenizing.run import tokenize_corpus

ROOT = Path(__file__).parents[2]
BASE = ROOT / "examples/tiny_cpu/base"
LENGTH, SHORT, BATCH, MOST_HELD = 1024, 256, 4, 16
LONG_STEPS, SHORT_STEPS = 30, 10
RECIPE = {
    "long": LengthPolicy(short_below=(SHORT,), long_above=LENGTH),
    "short": LengthPolicy(longest=SHORT, keep_short=(1.0,)),
}


def texts() -> dict[str, list[str]]:
    """Documents of each source, in an order of their own."""
    pages = [page.read_text(encoding="utf-8") for page in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])]
    paragraphs = [part for page in pages for part in page.split("\n\n") if len(part) > 200]
    return {"long": [text for _, _, text in documents()][:400], "short": paragraphs}


def make_data(output: Path) -> None:
    """For each source OUTPUT/NAME, which is trained on, and OUTPUT/NAME_held, every tenth of its documents."""
    tokenizer = load_tokenizer(BASE)
    for source, parts in texts().items():
        for name, own in ((f"{source}_held", parts[::10]), (source, [t for i, t in enumerate(parts) if i % 10])):
            lines = output / f"{name}.jsonl"
            lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in own), encoding="utf-8")
            tokenize_corpus([lines], output / f"{name}_tokens", tokenizer, Fields())
            corpus = open_corpus(output / f"{name}_tokens")
            write_resampled(corpus, output / f"{name}_list", RECIPE[source], None, 1234)
            options = PackOptions(sequence_length=LENGTH, separator=tuple(tokenizer.encode("<s>")))
            write_packed_index(corpus, output / name, options, read_documents(output / f"{name}_list", corpus))


@dataclasses.dataclass
class Runs:
    """Runs of the command line, their metrics below `output`."""

    output: Path

    def train(self, name: str, start: Path, steps: int, *words: str) -> list[dict]:
        """Train from `start`; the rows of metrics.jsonl."""
        (self.output / name).mkdir(exist_ok=True)
        text = f"""
model = {{ hf = "{BASE}" }}
rope = {{ kind = "{"yarn" if start.name == "megatron" else "keep"}" }}
data = {{ sequence_length = {LENGTH}, blend = "iterations" }}
train = {{ steps = {steps}, global_batch_size = {BATCH} }}
parallel = {{ device = "cpu" }}
checkpoint = {{ load = "{start}" }}
optimizer = {{ learning_rate = 2e-4, warmup_steps = 3 }}
log = {{ metrics = "{self.output / name / "metrics.jsonl"}" }}
"""
        (self.output / name / "run.toml").write_text(text, encoding="utf-8")
        config = ["--config", str(self.output / name / "run.toml")]
        subprocess.run([sys.executable, "-m", "megatron_ultralong.train", *config, *words], cwd=ROOT, check=True)
        lines = (self.output / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def held(self, start: Path) -> dict[str, float]:
        """Losses of held-out samples, by source."""
        found = {}
        still = ["--optimizer.learning_rate", "0", "--optimizer.warmup_steps", "0"]
        for source in ("long", "short"):
            words = ["--data.sources.0.index", str(self.output / f"{source}_held"), *still]
            samples = min(MOST_HELD, len(PackedDataset(self.output / f"{source}_held")))
            words += ["--data.document_mask", str(source == "short"), "--train.global_batch_size", str(samples)]
            (row,) = self.train(f"held_{source}_{start.parent.name}", start, 1, *words)
            found[source] = row["loss"]
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("build/mixed_run"))
    output = parser.parse_args().output.absolute()
    logging.basicConfig(level=logging.WARNING)
    output.mkdir(parents=True)
    make_data(output)
    convert_hf_to_megatron(hf=BASE, output=output / "megatron")
    runs = Runs(output)
    long = ["--data.sources.0.index", str(output / "long"), "--data.sources.0.weight", "3"]
    short = ["--data.sources.1.index", str(output / "short"), "--data.sources.1.document_mask", "true"]
    kinds = {"mixed": (LONG_STEPS + SHORT_STEPS, [*long, *short]), "long alone": (LONG_STEPS, long)}
    rows = {"before": runs.held(output / "megatron")}
    for name, (steps, words) in kinds.items():
        folder = output / name.replace(" ", "_")
        curve = runs.train(folder.name, output / "megatron", steps, *words, "--checkpoint.save", str(folder))
        for source in ("long", "short"):
            own = [row.get("loss_by_source", {"long": row["loss"]}) for row in curve]  # one source is not told apart
            seen = [f"{losses[source]:.3f}" for losses in own if source in losses]
            print(f"{name}, losses of {source}:", " ".join(seen) or "none")
        rows[name] = runs.held(folder / f"step_{steps:06d}")
    print("| | held-out whole samples | held-out short documents |\n|---|---|---|")
    for name, losses in rows.items():
        print(f"| {name} | {losses['long']:.3f} | {losses['short']:.3f} |")


if __name__ == "__main__":
    main()
