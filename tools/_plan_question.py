"""What tools/plan_run.py is asked: a model, a cluster, assumptions; read and checked before anything is computed."""

from __future__ import annotations

import dataclasses
import math
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
from megatron_ultralong.families.decoder import decoder_at
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
    """What is asked, read and checked.

    Attributes:
        hf_config: the model's config.json.
        path: that file.
        model: the folder of the model in Hugging Face format, as a run of it names it; may be yet to be filled.
        profile: the machine.
        assumed: of the run.
        reliability: of the cluster.
    """

    hf_config: dict[str, Any]
    path: Path
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
        job = plan_job(plan.config, plan.time.total, parameters, plan.world_size, self.reliability)
        if not math.isfinite(job.hours):
            raise UserError(
                f"--mtbf {self.reliability.mtbf:g} is a failure every {job.failure_seconds:,.0f} s of {job.ranks} "
                "GPUs, sooner than a step, a checkpoint and a restart take, so the job never ends; give more hours, or "
                "a faster --disk or --restart."
            )
        return job


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
    hf_config = decoder_at(path, "give --model a decoder's config.json of Hugging Face")
    if not 0 <= assumed.margin < 1:
        raise UserError(f"--margin is {assumed.margin:g}; give a share from 0 to below 1.")
    rates = {"--mtbf": reliability.mtbf, "--disk": reliability.disk, "--restart": reliability.restart}
    for name, value in {"--tokens": assumed.tokens, **rates}.items():
        if not 0 < value < math.inf:
            raise UserError(f"{name} is {value:g}; give a finite number above 0.")
    if assumed.document is not None and not 1 <= assumed.document < math.inf:
        raise UserError(f"--document is {assumed.document:g}; give a mean length of 1 or more.")
    folder = (path if path.parts[:-1] else path.absolute()).parent  # a folder's own name, never "."
    folder = folder if path.name == "config.json" else Path("models") / path.stem
    return Question(hf_config, path, folder, find(assumed.hardware), assumed, reliability)
