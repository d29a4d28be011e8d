"""What an arm with a seed takes, as a plain list of commands: data, packing, training, tuning, export, evaluation.

A stage's folder is named by what it does and a hash of its command, which names the folders that it reads: so the name
says what everything was made from, two arms that need the same share it, and what changes in arms.toml moves only what
follows from it. In a command `@/` stands for the folder of all stages, `@out` for the stage's own, and `*` for every
file that fits.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from pathlib import Path

from _arms import Arm, Experiment, Grid, Run, Scale, Seconds
from make_arm_data import MULTIKEY, MULTIVALUE, TRACKING

from megatron_ultralong.files import fingerprint

TINY = "examples/tiny_cpu"
SHORT_BELOW, LONG_ABOVE = 4, 8  # of the base's context; the paper's 4K and 8K, and the quickstart's
TUNE_LENGTH, TUNE_BATCH, TUNE_ANSWER = 1024, 8, 256
RULER = (MULTIKEY, MULTIVALUE, TRACKING)
RULER_SHORTEST = 1024  # tokens: below it variable tracking's solved example leaves no room
WARMUP = 5
_SAVES = 6  # checkpoints of a training stage, from which it goes on after a kill


@dataclasses.dataclass(frozen=True)
class Stage:
    """A command.

    Attributes:
        name: what it does, the same in every arm.
        words: the command; the first is "python".
        files: files whose content decides the result and whose name does not tell it.
        estimate: seconds of one idle core.
    """

    name: str
    words: tuple[str, ...]
    files: tuple[Path, ...] = ()
    estimate: float = 0.0

    @functools.cached_property
    def folder(self) -> str:
        """Its name in the folder of all stages."""
        made_from = [self.words, [_fingerprint(path) for path in self.files]]
        return f"{self.name}-{hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:12]}"

    def at(self, path: str) -> str:
        """A path that it writes, as other stages name it."""
        return f"@/{self.folder}/{path}"


_fingerprint = functools.lru_cache(maxsize=None)(fingerprint)


def stages(experiment: Experiment, run: Run) -> list[Stage]:
    """All that a run takes, each after what it reads; those of evaluation last."""
    return Commands(experiment, run).all()


class Commands:
    """The commands of one run, in `found`, each once and after what it reads; `base` instead of its scale's."""

    def __init__(self, experiment: Experiment, run: Run, base: str = "") -> None:
        self.arm: Arm = experiment.arms[run.arm]
        self.scale: Scale = experiment.scales[run.scale]
        self.base, self.context, self.seed = base or self.scale.base, experiment.context, str(run.seed)
        self.name, self.seconds = run.arm, experiment.seconds
        self.found: list[Stage] = []

    def all(self) -> list[Stage]:
        data = self.add(
            "data", f"{TINY}/make_data.py", "extend", "--output", "@out/data", files=[f"{TINY}/make_data.py"]
        )
        model, checkpoint = self.base, ""
        if self.arm.trained:
            checkpoint = self.extended(data)
            if self.arm.tuned:
                checkpoint = self.tuned(checkpoint, data)
            export = self.add(
                "export", "tools/convert_megatron_to_hf.py", "--load", checkpoint, "--output", "@out/model",
                "--overwrite",
            )  # fmt: skip
            model = export.at("model")
        self.asked(model, data)
        return self.found

    def add(self, name: str, *words: str, files: list[str] | None = None, estimate: float = 0.0) -> Stage:
        paths = tuple(map(Path, files or ()))
        stage = Stage(name, ("python", *words), paths, self.seconds.start + estimate)
        if stage not in self.found:
            self.found.append(stage)
        return stage

    @property
    def model_files(self) -> list[str]:
        """Of the base, all that decides what is made with it."""
        return sorted(str(path) for path in Path(self.base).iterdir() if path.suffix in (".json", ".safetensors"))

    def tokens(self, name: str, written: str) -> str:
        stage = self.add(
            f"tokens_{name}", "tools/preprocess_data.py", "--input", written, "--output-prefix", f"@out/{name}",
            "--tokenizer-model", self.base, files=[f"{self.base}/tokenizer.json", f"{self.base}/tokenizer_config.json"],
        )  # fmt: skip
        return stage.at(name)

    def packed(self, name: str, tokens: str, length: int, *options: str) -> str:
        stage = self.add(
            f"pack_{name}", "tools/pack_corpus.py", "--tokens", tokens, "--output", "@out/packed",
            "--sequence-length", str(length), "--tokenizer-model", self.base, "--shuffle-seed", self.seed, *options,
        )  # fmt: skip
        return stage.at("packed")

    def sources(self, length: int, data: Stage) -> list[str]:
        """Flags that name the packed data of one length, each with its share of the samples."""
        arm, corpus = self.arm, self.tokens("corpus", data.at("data/corpus.jsonl"))
        listed: tuple[str, ...] = ()
        if arm.resample:
            chosen = self.add(
                "resample", "tools/resample_corpus.py", "--tokens", corpus, "--output", "@out/list", "--short-below",
                str(SHORT_BELOW * self.context), "--long-above", str(LONG_ABOVE * self.context), "--seed", self.seed,
            )  # fmt: skip
            listed = ("--documents", chosen.at("list"))
        own = self.packed("corpus", corpus, length, "--separator", arm.separator, *listed)
        found = [(own, 1.0 - arm.short_share - arm.replay_share - arm.needle_share, arm.document_mask)]
        tokens, texts = self.scale.steps * self.scale.batch * self.scale.target, data.at("data/corpus.jsonl")
        for kind, share, isolated, write in (
            ("short", arm.short_share, True, lambda n: self.made("short", texts, self.context, n)),
            ("replay", arm.replay_share, True, self.replayed),
            ("needles", arm.needle_share, arm.document_mask, lambda n: self.made("needles", texts, length, n)),
        ):
            if share:
                written = self.tokens(kind, write(math.ceil(share * tokens)))
                found.append((self.packed(kind, written, length, "--packing", "best-fit"), share, isolated))
        return [
            word for number, (index, share, isolated) in enumerate(found)
            for word in (
                f"--data.sources.{number}.index", index, f"--data.sources.{number}.weight", f"{share:g}",
                *((f"--data.sources.{number}.document_mask", "true") if isolated and not arm.document_mask else ()),
            )
        ]  # fmt: skip

    def replayed(self, tokens: int) -> str:
        """Chats of the kind that the base learnt from first."""
        script, count = f"{TINY}/make_data.py", str(-(-tokens // (self.context // 2)))
        made = self.add(
            "replay", script, "base", "--output", "@out/data", "--count", count, "--seed", self.seed, files=[script]
        )
        return made.at(f"data/notes_{self.context}.jsonl")

    def extended(self, data: Stage) -> str:
        """The checkpoint after the lengths of the arm's schedule, of as many tokens each, to the nearest step."""
        scale, schedule = self.scale, self.arm.schedule
        checkpoint = self.converted()
        for share in schedule:
            length = int(scale.target * share)
            batch = max(1, round(scale.batch * scale.target / length))
            steps = round(scale.steps * scale.batch * scale.target / (len(schedule) * batch * length))
            checkpoint = self.trained(
                "train", "extend", length, steps, batch, checkpoint,
                *self.rope(length), *self.sources(length, data), "--data.document_mask", _word(self.arm.document_mask),
                "--optimizer.learning_rate", f"{scale.learning_rate:g}", "--optimizer.decay", "cosine",
                "--optimizer.min_learning_rate", f"{scale.learning_rate / 10:g}",
                each=self.context if self.arm.document_mask else length,
            )  # fmt: skip
        return checkpoint

    def converted(self) -> str:
        """The base as a checkpoint."""
        return self.add(
            "convert", "tools/convert_hf_to_megatron.py", "--hf", self.base, "--output", "@out/megatron",
            "--overwrite", files=self.model_files,
        ).at("megatron")  # fmt: skip

    def rope(self, length: int) -> list[str]:
        """Flags of [rope]; "none" is linear scaling by 1, since "keep" refuses samples beyond the model's context.

        A schedule's lengths within the base's context keep its rope.
        """
        if length <= self.context:
            return ["--rope.kind", "keep"]
        fields = {"form": "paper", "temperature": False, "angles": "fp32"} | self.arm.rope
        if fields["kind"] == "none":
            fields |= {"kind": "linear", "original_length": length}
        return [word for name, value in fields.items() for word in (f"--rope.{name}", _word(value))]

    def tuned(self, checkpoint: str, data: Stage) -> str:
        """The checkpoint after instruction tuning on short chats, as the recipe has it: of one key, and of several."""
        scale, script = self.scale, f"{TINY}/make_data.py"
        length = min(TUNE_LENGTH, scale.target)
        one_key = self.add(
            "chats", script, "chat", "--output", "@out/data", "--tokenizer", self.base, "--count", str(scale.chats),
            "--seed", self.seed, files=[script],
        )  # fmt: skip
        several = self.made("ruler", data.at("data/corpus.jsonl"), self.context, scale.tune_steps * TUNE_BATCH * length)
        sources = [
            word for number, (name, written) in enumerate((("chats", one_key.at("data/sft.jsonl")), ("ruler", several)))
            for word in (
                f"--data.sources.{number}.index",
                self.packed(name, self.tokens(name, written), length, "--packing", "best-fit"),
                f"--data.sources.{number}.weight", "1",
            )
        ]  # fmt: skip
        return self.trained(
            "tune", "sft", length, scale.tune_steps, TUNE_BATCH, checkpoint, *sources, "--optimizer.learning_rate",
            f"{scale.tune_learning_rate:g}", each=TUNE_ANSWER,
        )  # fmt: skip

    def made(self, kind: str, texts: str, length: int, tokens: int) -> str:
        """A file that make_arm_data.py makes of documents."""
        script = "examples/ablations/make_arm_data.py"
        stage = self.add(
            kind, script, kind, "--corpus", texts, "--tokenizer", self.base, "--length",
            str(length), "--tokens", str(tokens), "--seed", self.seed, "--output", f"@out/{kind}.jsonl",
            files=[script], estimate=tokens / length * 0.004,
        )  # fmt: skip
        return stage.at(f"{kind}.jsonl")

    def trained(
        self, name: str, config: str, length: int, steps: int, batch: int, checkpoint: str, *options: str, each: int
    ) -> str:
        """The last checkpoint of a training stage; `each` is how far tokens see, for the estimate."""
        seconds = self.seconds
        stage = self.add(
            name, "-m", "megatron_ultralong.train", "--config", f"{TINY}/{config}.toml", "--model.hf", self.base,
            "--data.sequence_length", str(length), "--train.steps", str(steps), "--train.global_batch_size", str(batch),
            "--train.seed", self.seed, "--optimizer.warmup_steps", str(min(WARMUP, steps // 2)),
            "--parallel.context", "1", "--checkpoint.load", checkpoint, "--checkpoint.save", "@out/run",
            "--checkpoint.interval", str(max(1, steps // _SAVES)), "--checkpoint.keep_last", "2", *options,
            files=[f"{TINY}/{config}.toml"],
            estimate=steps * batch * length * (seconds.train_token + each * seconds.train_token_length),
        )  # fmt: skip
        return stage.at(f"run/step_{steps:06d}")

    def asked(self, model: str, data: Stage) -> None:
        """Prompts, the same for every arm of a scale and seed, the model's answers, and its perplexity."""
        scale, heldout = self.scale, data.at("data/heldout.jsonl")
        target = scale.target
        asked: list[tuple[tuple[str, ...], list[int], tuple[str, ...]]] = [
            (("needles",), [target], (*_grid(scale.needles), "--lead-in")),
            (("recall",), [self.context], ("--samples", str(scale.short), "--lead-in")),
        ]
        if scale.ruler:
            asked.append((RULER, [target], ("--samples", str(scale.ruler))))
        if scale.ruler_beside:
            asked.append((RULER, beside(target), ("--samples", str(scale.ruler_beside))))
        prompts = [self.prompts(heldout, *words).at("prompts/**/*.jsonl") for words in asked]
        prompts.append(self.made("short_ruler", heldout, self.context, scale.short * self.context))
        tasks = dict.fromkeys([task for found, _, _ in asked for task in found] + list(RULER))
        asking = ("tools/evaluate.py", "run", "--model", model, "--name", self.name, "--past-context")
        files = [] if self.arm.trained else self.model_files
        self.add(
            "answers", *asking, "--form", "chat", "--task", *tasks, "--samples-file", *prompts, "--output", "@out/run",
            files=files, estimate=_asking_seconds(scale, self.context, self.seconds),
        )  # fmt: skip
        seconds = self.seconds
        read = sum(n * (seconds.read_token + n * seconds.read_token_length) for n in (target, 2 * target))
        self.add(
            "perplexity", *asking, "--task", "perplexity/by_position", "--lengths", str(target), str(2 * target),
            "--documents", heldout, "--windows", str(scale.windows), "--output", "@out/run", files=files,
            estimate=scale.windows * read,
        )  # fmt: skip

    def prompts(self, haystack: str, tasks: tuple[str, ...], lengths: list[int], options: tuple[str, ...]) -> Stage:
        return self.add(
            "prompts", "tools/evaluate.py", "make", "--tokenizer", self.base, "--form", "chat", "--haystack", haystack,
            "--task", *tasks, "--lengths", *map(str, lengths), "--seed", self.seed, "--workers", "1", *options,
            "--output", "@out/prompts", files=[f"{self.base}/tokenizer.json"],
        )  # fmt: skip


def beside(target: int) -> list[int]:
    """Lengths at which RULER's tasks are asked besides the target: variable tracking's solved example takes 1,000."""
    return [length for length in (target // 4, target // 2, 2 * target) if length >= RULER_SHORTEST]


def _grid(grid: Grid) -> tuple[str, ...]:
    return "--grid", str(grid.lengths), "--depths", str(grid.depths), "--trials", str(grid.trials)


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _asking_seconds(scale: Scale, context: int, seconds: Seconds) -> float:
    """Of reading all prompts, and of generating RULER's answers."""
    grid = scale.needles
    counts = {scale.target * (n + 1) // grid.lengths: grid.depths * grid.trials for n in range(grid.lengths)}
    generated = {scale.target: len(RULER) * scale.ruler, context: scale.short}
    generated |= {length: len(RULER) * scale.ruler_beside for length in beside(scale.target)}
    for length, count in (*generated.items(), (context, scale.short)):
        counts[length] = counts.get(length, 0) + count
    read = sum(n * length * (seconds.read_token + length * seconds.read_token_length) for length, n in counts.items())
    return read + sum(generated.values()) * seconds.answer
