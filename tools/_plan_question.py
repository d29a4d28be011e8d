"""What tools/plan_run.py is asked: a model, a cluster, assumptions; read and checked before anything is computed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from megatron_ultralong.config.sections import (
    CheckpointConfig,
    DataConfig,
    DataSource,
    ModelConfig,
    RopeConfig,
    RunConfig,
    TrainConfig,
)
from megatron_ultralong.errors import UserError
from megatron_ultralong.files import read_json
from megatron_ultralong.planning.flops import ModelShape
from megatron_ultralong.planning.hardware_profile import HardwareProfile, find
from megatron_ultralong.planning.job import JobPlan, Reliability, plan_job
from megatron_ultralong.planning.search.ranking import MARGIN, Plan

_TOKENS_A_STEP = 8_388_608
"""Of the authors' 4M model card: 2 samples of 4,194,304."""


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """What a plan starts from."""

    hardware: str = "h100"
    """A profile of megatron_ultralong/planning/profiles, or the path of one that tools/calibrate.py wrote."""
    batch: int | None = None
    """Samples a step; default: as many as make 8.4M tokens, as on the authors' model card."""
    tokens: float = 1e9
    """Of continued pretraining in all."""
    document: float | None = None
    """Mean length of documents that attention is confined to; default: it sees the whole sample."""
    margin: float = MARGIN
    """Share of a GPU's memory to leave free."""


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked, read and checked."""

    hf_config: dict[str, Any]
    model: Path
    profile: HardwareProfile
    assumed: Assumptions
    reliability: Reliability

    def base(self, length: int) -> RunConfig:
        """The run for a length, its layout yet to be found."""
        batch = self.assumed.batch or max(1, _TOKENS_A_STEP // length)
        name = f"runs/{self.model.name}_{length}"
        own = int(self.hf_config.get("max_position_embeddings") or 0)
        return RunConfig(
            model=ModelConfig(hf=self.model),
            rope=RopeConfig(kind="ultralong" if length > own else "keep"),
            data=DataConfig(
                sources=(DataSource(index=Path(name) / "packed"),),
                sequence_length=length,
                document_mask=self.assumed.document is not None,
            ),
            train=TrainConfig(steps=max(1, round(self.assumed.tokens / (batch * length))), global_batch_size=batch),
            checkpoint=CheckpointConfig(load=Path(name) / "megatron", save=Path(name) / "extend", keep_last=3),
        )

    def tuning(self, length: int) -> RunConfig:
        """The second stage of a run for a length: the paper's chats."""
        base, name = self.base(8192), f"runs/{self.model.name}_{length}"
        return dataclasses.replace(
            base,
            rope=RopeConfig(kind="keep"),
            data=dataclasses.replace(
                base.data, sources=(DataSource(index=Path(name) / "packed_chats"),), document_mask=True
            ),
            train=TrainConfig(steps=150, global_batch_size=128),
            optimizer=dataclasses.replace(base.optimizer, learning_rate=5e-6),
            checkpoint=CheckpointConfig(load=Path(name) / "extend", save=Path(name) / "sft", keep_last=3),
        )

    def job(self, plan: Plan) -> JobPlan:
        """Of one stage."""
        tied = bool(self.hf_config.get("tie_word_embeddings"))
        parameters = ModelShape.from_hf(self.hf_config).parameters(tied)
        return plan_job(plan.config, plan.time.total, parameters, plan.world_size, self.reliability)


def asked(model: Path | None, given: RunConfig | None, assumed: Assumptions, reliability: Reliability) -> Question:
    """The question, once all of it can be answered.

    Raises:
        UserError: the model, the machine or a number is none.
    """
    if model is None and given is None:
        raise UserError("--model is missing; give a model's config.json or its folder.")
    path = model or (given.model.hf if given else Path())
    if path.is_dir() or path.suffix != ".json":
        path = path / "config.json"
    hf_config = read_json(path, "the model's configuration", "give --model a config.json of Hugging Face")
    if not isinstance(hf_config, dict):
        raise UserError(f"{path}: no JSON object; give --model a config.json of Hugging Face.")
    wanted = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    bad = [name for name in wanted if not isinstance(hf_config.get(name), int) or hf_config[name] < 1]
    if bad:
        raise UserError(f"{path}: no whole number for {', '.join(bad)}; give --model a decoder's config.json.")
    if not 0 <= assumed.margin < 1:
        raise UserError(f"--margin is {assumed.margin:g}; give a share from 0 to below 1.")
    rates = {"--mtbf": reliability.mtbf, "--disk": reliability.disk, "--restart": reliability.restart}
    for name, value in {"--tokens": assumed.tokens, **rates}.items():
        if not value > 0:
            raise UserError(f"{name} is {value:g}; give a number above 0.")
    if assumed.document is not None and not assumed.document >= 1:
        raise UserError(f"--document is {assumed.document:g}; give a mean length of 1 or more.")
    folder = path.parent if str(path.parent) != "." else Path("model")
    return Question(hf_config, folder, find(assumed.hardware), assumed, reliability)
