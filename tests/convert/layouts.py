"""What torchrun runs for test_layouts.py: one group of processes that takes on one layout after another.

    torchrun --nproc-per-node 4 layouts.py JOBS.json

A job names a converted checkpoint, a layout, and where to save what megatron-core has loaded. Of a job with
`logits`, the last pipeline stage compares its logits with those that transformers computed.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from megatron_ultralong.checkpoint.description import Description
from megatron_ultralong.checkpoint.loading import load_sharded, model_state
from megatron_ultralong.config.sections import ParallelConfig
from megatron_ultralong.context_parallel import zigzag
from megatron_ultralong.context_parallel.core_attention import SequenceLayout
from megatron_ultralong.engine import groups, mcore
from megatron_ultralong.engine.checkpoint_writer import CheckpointWriter
from megatron_ultralong.model import build


def main() -> None:
    jobs = json.loads(Path(sys.argv[1]).read_text())
    groups.initialize(ParallelConfig(device="cpu"))
    writer, laid = CheckpointWriter(), None
    for job in sorted(jobs, key=lambda job: json.dumps([job["parallel"], job["chunks"]])):
        faulthandler.dump_traceback_later(120, exit=True)  # a hang says where
        parallel = ParallelConfig(device="cpu", **job["parallel"])
        chunks = job["chunks"]
        if laid != (parallel, chunks):  # groups stay until the end, so there are to be few
            lay(parallel, chunks)
            laid = parallel, chunks
        run(job, parallel, chunks, writer)
    dist.barrier()
    groups.finalize()


def lay(parallel: ParallelConfig, chunks: int) -> None:
    """Lay megatron-core's grid over the processes anew."""
    mcore.parallel_state.destroy_model_parallel()
    mcore.parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=chunks if chunks > 1 else None,
        context_parallel_size=parallel.context,
    )
    mcore.model_parallel_cuda_manual_seed(1)


def run(job: dict[str, Any], parallel: ParallelConfig, chunks: int, writer: CheckpointWriter) -> None:
    """Load under the layout, compare logits if there are any, save what was loaded."""
    folder = Path(job["load"])
    description = Description.read(folder)
    precision = "bf16" if job.get("bf16") else "fp32"
    if chunks > 1:
        models = [virtual_chunk(description, parallel, chunks, number) for number in range(chunks)]
    else:
        models = [build.build_model(description.hf_config, description.rope, parallel, precision)]
    state = {f"model{number}": model_state(model) for number, model in enumerate(models)}
    loaded = load_sharded(state, folder)
    for number, model in enumerate(models):
        missing, unexpected = model.load_state_dict(loaded[f"model{number}"], strict=False)
        assert not unexpected and all(name.endswith("_extra_state") for name in missing), (missing, unexpected)
    if "logits" in job:
        compare(job, parallel, models, description.hf_config["vocab_size"])
    saved = Path(job["save"])
    if dist.get_rank() == 0:
        saved.mkdir()
    dist.barrier()
    request, failure = writer.plan({f"model{n}": model_state(model) for n, model in enumerate(models)}, str(saved))
    assert failure is None
    writer.write(request)
    if dist.get_rank() == 0:
        dataclasses.replace(description, files={}).write(saved)


def virtual_chunk(description: Description, parallel: ParallelConfig, chunks: int, number: int) -> Any:
    """One of this rank's chunks of an interleaved pipeline, as megatron-core builds it."""
    hf_config, rope = description.hf_config, description.rope
    config = build.transformer_config(hf_config, parallel, "fp32")
    config = dataclasses.replace(config, virtual_pipeline_model_parallel_size=chunks)
    spec = build._layer_spec(config, parallel)
    spec.layer_specs = spec.layer_specs[:1] * mcore.get_num_layers_to_build(config, vp_stage=number)
    state = mcore.parallel_state
    model = build.LanguageModel(
        config=config,
        transformer_layer_spec=spec,
        vocab_size=build.padded(hf_config["vocab_size"], parallel.tensor),
        max_sequence_length=rope.length,
        pre_process=state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=number),
        post_process=state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=number),
        share_embeddings_and_output_weights=bool(hf_config.get("tie_word_embeddings")),
        position_embedding_type="rope",
        rotary_base=int(rope.base),
        vp_stage=number,
    )
    model.rotary_pos_emb = build.Rotary(rope, rope.rotary_dim(build.head_dim(hf_config)), "fp32", dtype=torch.float32)
    return model


def compare(job: dict[str, Any], parallel: ParallelConfig, models: list[Any], vocabulary: int) -> None:
    """Run the schedule forward only, and hold the logits of the last stage against transformers'."""
    stored = load_file(job["logits"])
    tokens_1S, expected_SV = stored["tokens"][None], stored["logits"]
    rank, size = mcore.parallel_state.get_context_parallel_rank(), parallel.context
    spans = zigzag.spans(tokens_1S.shape[1], rank, size)
    held = torch.cat([torch.arange(start, stop) for start, stop in spans])
    batch = tokens_1S[:, held], held[None]

    def forward(iterator: Any, model: Any) -> Any:
        tokens_1L, positions_1L = next(iterator)
        layout = SequenceLayout(position_ids=positions_1L)
        logits = model(tokens_1L, positions_1L, attention_mask=None, packed_seq_params=layout)
        return logits, lambda output, non_loss_data: output

    for model in models:
        model.eval()
    microbatches = parallel.pipeline  # interleaving wants a multiple of the stages
    iterators: Any = [iter([batch] * microbatches) for _ in models]
    with torch.no_grad():
        found = mcore.get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=iterators if len(models) > 1 else iterators[0],
            model=models if len(models) > 1 else models[0],
            num_microbatches=microbatches,
            seq_length=tokens_1S.shape[1],
            micro_batch_size=1,
            forward_only=True,
            collect_non_loss_data=True,
        )
    if not mcore.parallel_state.is_pipeline_last_stage(ignore_virtual=True):
        return
    assert len(found) == microbatches
    group = mcore.parallel_state.get_tensor_model_parallel_group()
    own_LV = found[0][0].contiguous()
    parts = [torch.empty_like(own_LV) for _ in range(group.size())]
    dist.all_gather(parts, own_LV, group=group)
    logits_LV = torch.cat(parts, dim=-1)[:, :vocabulary]
    difference = float((logits_LV - expected_SV[held]).abs().max())
    limit = 5e-6 * float(expected_SV.abs().max())
    assert difference < limit, f"{job}: logits differ by {difference}, allowed {limit}"


if __name__ == "__main__":
    main()
