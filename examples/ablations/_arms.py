"""arms.toml as dataclasses: every name known, every value of its field's type, else one sentence.

An arm that leaves a field out has the reference recipe's.
"""

from __future__ import annotations

import dataclasses
import sys
import typing
from pathlib import Path
from typing import Any

from megatron_ultralong.config.sections import RopeConfig
from megatron_ultralong.errors import UserError, listing

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REFERENCE, QUICK = "recipe", "quick"


@dataclasses.dataclass(frozen=True)
class Grid:
    """Needles: so many lengths up to the target, depths, and samples of each."""

    lengths: int
    depths: int
    trials: int


@dataclasses.dataclass(frozen=True)
class Scale:
    """From what, how far, how long, and how much is asked; the same for every arm.

    Attributes:
        base: folder of the model in Hugging Face format, with a chat template.
        target: tokens of context to reach.
        steps: optimizer steps of `batch` x `target` tokens; other lengths get as many tokens, to the nearest step.
        batch: samples a step at the target.
        learning_rate: of the extension, of which a tenth is left at its end (cosine).
        tune_steps: of instruction tuning, 8 x 1,024 tokens each.
        tune_learning_rate: of instruction tuning.
        chats: chats made for it.
        needles: the grid.
        short: chats within the base's context, of one key, and as many in RULER's wording.
        ruler: samples of each of RULER's tasks at the target; 0: none.
        ruler_beside: at a quarter, half and twice of it.
        windows: of held-out text, a length.
    """

    base: str
    target: int
    steps: int
    batch: int
    learning_rate: float
    tune_steps: int
    tune_learning_rate: float
    chats: int
    needles: Grid
    short: int
    ruler: int
    ruler_beside: int
    windows: int


@dataclasses.dataclass(frozen=True)
class Arm:
    """What is trained; the defaults are not used: what an arm leaves out is the reference's.

    Attributes:
        trained: False: the base itself.
        separator: text between documents.
        document_mask: tokens see their own document alone.
        resample: documents drawn by length, as the recipe has it; False: each once.
        short_share: of the samples, made of pieces within the base's context.
        replay_share: of the samples, made of the base's own chats, none longer than its context.
        needle_share: of the samples, chats of the target's length about keys.
        rope: fields of [rope], or kind "none".
        schedule: lengths in turn, as shares of the target, of which the last may lie past it.
        tuned: by short chats after the extension.
        apart: not to be compared with the others: it is trained on what is asked.
    """

    trained: bool = True
    separator: str = "<s>"
    document_mask: bool = False
    resample: bool = True
    short_share: float = 0.0
    replay_share: float = 0.0
    needle_share: float = 0.0
    rope: dict[str, Any] = dataclasses.field(default_factory=dict)
    schedule: tuple[float, ...] = (1.0,)
    tuned: bool = True
    apart: bool = False


@dataclasses.dataclass(frozen=True)
class Block:
    """Arms that run at one scale, seed by seed."""

    scale: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Claim:
    """That each measure of `arm`, or its lead over `against`, lies above a number; its picture also shows the leads
    over the arms `beside`. `pooled`: of needles_worst_length alone, the worst length of all seeds' needles together.
    """

    name: str
    arm: str
    measures: tuple[str, ...]
    above: float
    scales: tuple[str, ...]
    against: str = ""
    beside: tuple[str, ...] = ()
    pooled: bool = False


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Of one core: a tool's start, a token trained or read and what each token of its length adds, an answer."""

    start: float
    train_token: float
    train_token_length: float
    read_token: float
    read_token_length: float
    answer: float


@dataclasses.dataclass(frozen=True)
class Run:
    """One arm at one scale with one seed."""

    scale: str
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """As files and tables have it."""
        return f"{self.scale}_{self.arm}_{self.seed}"


@dataclasses.dataclass(frozen=True)
class Experiment:
    """arms.toml; `context` is what every base was trained at."""

    context: int
    scales: dict[str, Scale]
    arms: dict[str, Arm]
    plan: tuple[Block, ...]
    claims: tuple[Claim, ...]
    seconds: Seconds

    def runs(self, quick: bool, arms: tuple[str, ...], seeds: tuple[int, ...], scales: tuple[str, ...]) -> list[Run]:
        """The plan in its order, or the part of it that is asked for; `quick`: every arm once, at the quick scale."""
        plan = (Block(QUICK, tuple(self.arms), (1,)),) if quick else self.plan
        for flag, given, known in (
            ("--arm", arms, {arm for block in plan for arm in block.arms}),
            ("--seed", seeds, {seed for block in plan for seed in block.seeds}),
            ("--scale", scales, {block.scale for block in plan}),
        ):
            for each in given:
                if each not in known:
                    raise UserError(f"{flag} {each} is not in the plan; it has {listing(map(str, sorted(known)), 20)}.")
        found = [Run(b.scale, arm, seed) for b in plan for seed in b.seeds for arm in b.arms]
        chosen = [
            run for run in found
            if run.arm in (arms or (run.arm,)) and run.seed in (seeds or (run.seed,))
            and run.scale in (scales or (run.scale,))
        ]  # fmt: skip
        if not chosen:
            raise UserError("--arm, --seed and --scale leave nothing of the plan; run.py list shows it.")
        return chosen


def read_experiment(path: Path) -> Experiment:
    """Read arms.toml.

    Raises:
        UserError: a name is unknown or missing, a value has another type, or what it says cannot be run.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"--plan: {path} cannot be read ({error.strerror}); give arms.toml, from the repository's root."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not TOML: {error}; mend that line.") from None
    arms = table.get("arms")
    if not isinstance(arms, dict) or not isinstance(arms.get(REFERENCE), dict):
        raise UserError(f"{path}: [arms.{REFERENCE}] is missing; every other arm differs from it.")
    for name, own in arms.items():
        if isinstance(own, dict):
            arms[name] = arms[REFERENCE] | own
    found = _value(Experiment, table, str(path))
    _check(found, path)
    return found


def refuse_no_model(base: str, where: str) -> None:
    """Refuse a base that is no model's folder.

    Raises:
        UserError: it is none; `where` says what named it.
    """
    if not (base and (Path(base) / "config.json").exists()):
        raise UserError(
            f"{where} is {base or 'empty'}, where there is no config.json; name a model's folder from the repository's "
            "root."
        )


def _value(kind: Any, given: Any, where: str) -> Any:
    """`given` as a `kind`, tables and lists all the way down."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not isinstance(given, dict):
            raise UserError(f"{where} is {given!r}; give a table.")
        fields, types = {field.name: field for field in dataclasses.fields(kind)}, typing.get_type_hints(kind)
        if unknown := [name for name in given if name not in fields]:
            raise UserError(f"{where}: {unknown[0]} is not known; it takes {listing(fields, 20)}.")
        no_default = dataclasses.MISSING
        for name, field in fields.items():
            if name not in given and field.default is no_default and field.default_factory is no_default:
                raise UserError(f"{where}: {name} is missing; state it.")
        return kind(**{name: _value(types[name], value, f"{where}: {name}") for name, value in given.items()})
    if origin is dict and isinstance(given, dict):
        return {name: _value(inside[1], value, f"{where}.{name}") for name, value in given.items()}
    if origin is tuple and isinstance(given, list):
        return tuple(_value(inside[0], value, where) for value in given)
    if kind is Any or type(given) is kind or (kind is float and type(given) is int):
        return given
    raise UserError(f"{where} is {given!r}; give {getattr(origin or kind, '__name__', kind)}.")


def _check(found: Experiment, path: Path) -> None:
    """What one field cannot tell."""
    for name, arm in found.arms.items():
        if unknown := set(arm.rope) - {field.name for field in dataclasses.fields(RopeConfig)}:
            raise UserError(f"{path}: arms.{name}: rope has no {min(unknown)}; it takes the fields of a run's [rope].")
        if not arm.schedule or list(arm.schedule) != sorted(arm.schedule) or not 1.0 <= arm.schedule[-1] <= 2.0:
            raise UserError(
                f"{path}: arms.{name}: schedule is {list(arm.schedule)}; lengths ascend to 1.0, the target, or past it "
                "to at most 2.0."
            )
        shares = (arm.short_share, arm.replay_share, arm.needle_share)
        if not 0 <= sum(shares) < 1 or min(shares) < 0:
            raise UserError(f"{path}: arms.{name}: the shares leave nothing of the corpus; give less than 1 in all.")
        for label, scale in found.scales.items():
            if scale.steps < len(arm.schedule) or any(scale.target * share % 2 for share in arm.schedule):
                raise UserError(
                    f"{path}: scales.{label}: steps {scale.steps} and target {scale.target} do not make the "
                    f"{len(arm.schedule)} lengths of arms.{name}; each takes a step, and an even number of tokens."
                )
    names: list[tuple[tuple[str, ...], tuple[str, ...]]] = [(block.arms, (block.scale,)) for block in found.plan]
    names += [((claim.arm, *filter(None, [claim.against]), *claim.beside), claim.scales) for claim in found.claims]
    for arms, scales in names:
        for arm_name in arms:
            if arm_name not in found.arms:
                raise UserError(f"{path}: {arm_name} is no arm; it has {listing(found.arms, 20)}.")
        for scale_name in scales:
            if scale_name not in found.scales:
                raise UserError(f"{path}: {scale_name} is no scale; it has {listing(found.scales, 20)}.")
