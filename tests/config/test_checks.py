import importlib.util
import json
from pathlib import Path

import pytest

from megatron_ultralong.config.reading import check_config, load_config
from megatron_ultralong.config.sections import DataConfig, ModelConfig, ParallelConfig, RunConfig, TrainConfig
from megatron_ultralong.config.stages import layers_of_stages, stage_problems
from megatron_ultralong.errors import UserError

HF = {"num_attention_heads": 8, "num_key_value_heads": 4, "num_hidden_layers": 6, "vocab_size": 1024}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Check a valid run with some flags changed; returns the problems, one an entry."""
    monkeypatch.chdir(tmp_path)
    Path("run.toml").write_text(
        '[model]\nhf = "m"\n[data]\nsequence_length = 2048\n[[data.sources]]\nindex = "a"\n'
        '[train]\nsteps = 3\nglobal_batch_size = 4\n[checkpoint]\nload = "start"\n'
    )
    Path("start").mkdir()
    pack("a")

    def check(flags: str = "", world_size: int = 1, hf: dict = HF) -> list[str]:
        config = load_config(Path("run.toml"), flags.split())
        try:
            check_config(config, hf_config=hf, world_size=world_size)
        except UserError as error:
            lines = str(error).splitlines()
            return lines if len(lines) == 1 else [line.strip() for line in lines[1:]]
        return []

    return check


def pack(folder: str, **changes: object) -> None:
    """A packed index's manifest, as far as the check reads it."""
    Path(folder).mkdir()
    manifest = {
        "sequence_length": 2048,
        "vocab_size": 1024,
        "tokenizer_fingerprint": "t1",
    } | changes
    Path(folder, "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("flags", "world_size"),
    [
        ("", 1),
        ("", 4),
        ("--parallel.context 2", 2),
        ("--parallel.context 8 --parallel.ulysses 8", 8),
        ("--parallel.context 4 --parallel.ulysses 2 --data.document_mask true", 4),
        ("--parallel.context 2 --parallel.tensor 2 --parallel.sequence_parallel true --parallel.pipeline 3", 12),
        ("--parallel.tensor 8", 8),
        ("--parallel.head_groups 8 --parallel.recompute selective --parallel.offload true", 1),
        ("--parallel.pipeline 4 --parallel.first_stage_layers 1 --parallel.last_stage_layers 1", 4),
        ("--train.micro_batch_size 2", 2),
        ("--rope.kind yarn --rope.target_length 4096", 1),
        ("--rope.kind yarn --rope.form coded --rope.temperature true", 1),
        ("--rope.kind yarn --rope.temperature true", 1),
        ("--rope.kind ultralong --rope.angles fp64", 1),
        ("--checkpoint.load none --model.init random", 1),
        ("--rope.kind llama3 --rope.alpha 2 --rope.beta 8 --rope.original_length 512", 1),
        ("--rope.kind linear --rope.temperature true", 1),
        ("--optimizer.warmup_steps 3 --optimizer.min_learning_rate 3e-5 --optimizer.beta1 0", 1),
        ("--train.global_batch_size 1048576", 2),
        ("--train.grad_reduce_in_fp32 false", 1),
        ("--optimizer.offload_fraction 0.5 --parallel.distributed_optimizer true", 2),
        ("--optimizer.offload_fraction 1 --train.precision fp32 --parallel.device cpu", 1),
    ],
)
def test_runs_that_work(run, flags, world_size):
    assert run(flags, world_size) == []


@pytest.mark.parametrize(
    ("flags", "world_size", "said"),
    [
        ("--train.steps 0", 1, "train.steps is 0; give 1 or more."),
        ("--checkpoint.interval -1", 1, "checkpoint.interval is -1; give 0 or more."),
        ("--log.interval 0", 1, "log.interval is 0; give 1 or more."),
        ("--data.sources.0.weight 0", 1, "data.sources.0.weight is 0.0; give a weight above 0 or remove the source."),
        ("--parallel.context 2 --parallel.tensor 2", 6, "6 processes are no multiple of parallel.tensor 2 x "),
        ("", 3, "train.global_batch_size is 4, not a multiple of train.micro_batch_size 1 x data-parallel size 3; "),
        ("--parallel.context 3", 3, "data.sequence_length is 2048, not divisible by 2 x parallel.context = 6, "),
        ("--parallel.context 4 --parallel.ulysses 3", 4, "parallel.ulysses is 3, which does not divide parallel.cont"),
        ("--parallel.context 2 --parallel.ulysses 4", 2, "parallel.ulysses is 4, which does not divide parallel.cont"),
        ("--parallel.ulysses 0", 1, "parallel.ulysses is 0; give 1 or more."),
        (
            "--parallel.context 16 --parallel.ulysses 16",
            16,
            "parallel.ulysses is 16, which does not divide a rank's 8 attention heads; give a divisor of 8.",
        ),
        (
            "--parallel.context 8 --parallel.ulysses 8 --parallel.tensor 2",
            16,
            "parallel.ulysses is 8, which does not divide a rank's 4 attention heads; give a divisor of 4.",
        ),
        (
            "--parallel.cp_comm_type a2a",
            1,
            'parallel.cp_comm_type is "a2a", which only parallel.attention "te" reads; ',
        ),
        (
            "--parallel.kernel flash3 --parallel.device cpu",
            1,
            'parallel.kernel is "flash3" with parallel.device "cpu", ',
        ),
        ("--parallel.tensor 16", 16, "parallel.tensor is 16, which does not divide the model's 8 attention heads; "),
        ("--parallel.pipeline 4", 4, "parallel.pipeline is 4, which does not divide the model's 6 layers; give a div"),
        ("--parallel.last_stage_layers 2", 1, "parallel.last_stage_layers is 2 with parallel.pipeline 1, whose one "),
        (
            "--parallel.pipeline 3 --parallel.first_stage_layers 1",
            3,
            "parallel.first_stage_layers 1 and parallel.last_stage_layers 0 leave 5 of the model's 6 layers for the ",
        ),
        ("--parallel.recompute_layers 2", 1, 'parallel.recompute_layers is 2 with parallel.recompute "none"; remove'),
        ("--parallel.recompute full --parallel.recompute_layers 7", 1, "parallel.recompute_layers is 7, but a pipelin"),
        ("--parallel.offload true", 1, 'parallel.offload is true with parallel.recompute "none"; set that to "full"'),
        (
            "--train.precision fp32 --train.grad_reduce_in_fp32 false",
            1,
            "train.grad_reduce_in_fp32 is false with train.p",
        ),
        ("--optimizer.offload_fraction -1", 1, "optimizer.offload_fraction is -1.0; give 0 or more."),
        ("--optimizer.offload_fraction 2", 1, "optimizer.offload_fraction is 2.0; give a share from 0 to 1."),
        ("--optimizer.beta1 1", 1, "optimizer.beta1 is 1.0; give a rate from 0 to below 1, such as 0.9."),
        ("--optimizer.beta2 -0.1", 1, "optimizer.beta2 is -0.1; give a rate from 0 to below 1, such as 0.95."),
        ("--optimizer.eps 0", 1, "optimizer.eps is 0.0; give a small number above 0, such as 1e-08."),
        (
            "--optimizer.min_learning_rate 1e-3",
            1,
            "optimizer.min_learning_rate is 0.001, above optimizer.learning_rate 3e-05, which decays towards it; ",
        ),
        ("--optimizer.warmup_steps 4", 1, "optimizer.warmup_steps is 4, more than train.steps 3, so the learning rat"),
        (
            "--train.global_batch_size 1048576",
            1,
            "train.global_batch_size 1048576 is 2147483648 labels a step on one rank, which megatron-core counts in "
            "32 bits; give at most 1048575.",
        ),
        (
            "--parallel.head_groups 3 --parallel.recompute full",
            1,
            "parallel.head_groups is 3, which does not cut a rank's 8 attention heads and 4 key-value heads",
        ),
        ("--parallel.head_groups 2", 1, 'parallel.head_groups is 2 with parallel.recompute "none"; set that to "full"'),
        (
            "--parallel.head_groups 2 --parallel.recompute full --parallel.recompute_layers 2",
            1,
            "parallel.head_groups is 2 with parallel.recompute_layers 2; remove one",
        ),
        (
            "--parallel.head_groups 1 --parallel.recompute full --parallel.tensor 8",
            8,
            "parallel.head_groups is 1 with parallel.tensor 8, which does not divide the model's 4 key-value heads",
        ),
        (
            "--parallel.head_groups 8 --parallel.recompute full --parallel.context 2 --parallel.ulysses 2",
            2,
            "parallel.head_groups is 8 with parallel.ulysses 2, over which a group's 1 attention heads and 1 key-value",
        ),
        ("--parallel.head_groups -1", 1, "parallel.head_groups is -1; give 0 or more."),
        ("--parallel.mlp_chunk -1", 1, "parallel.mlp_chunk is -1; give 0 or more."),
        ("--log.profile 2", 1, "log.profile is 2, but checkpoint.save is not given; its traces go below that."),
        ("--parallel.sequence_parallel true", 1, "parallel.sequence_parallel is true with parallel.tensor 1; "),
        (
            "--rope.kind ultralong --rope.beta 32",
            1,
            'rope.beta is 32.0, but rope.kind "ultralong" follows the model\'s own; remove it, ',
        ),
        ("--rope.alpha 2", 1, 'rope.alpha is 2.0, but rope.kind "keep" leaves the model\'s rope as it is; remove it, '),
        ("--rope.target_length 4096", 1, 'rope.target_length is 4096, but rope.kind "keep" leaves the model\'s rope'),
        (
            "--rope.kind linear --rope.beta 8",
            1,
            'rope.beta is 8.0, but rope.kind "linear" does not read it; remove it.',
        ),
        ("--rope.kind ntk --rope.alpha 2", 1, 'rope.alpha is 2.0, but rope.kind "ntk" does not read it; remove it.'),
        ("--rope.kind llama3 --rope.form coded", 1, 'rope.form is coded, but rope.kind "llama3" does not read it; '),
        (
            "--rope.kind yarn --rope.target_length 1024",
            1,
            "rope.target_length is 1024, below data.sequence_length 2048; ",
        ),
        ("--model.init random", 1, 'model.init is "random" and checkpoint.load is start; remove checkpoint.load, '),
        ("--checkpoint.load none", 1, 'model.init is "checkpoint", but checkpoint.load is not given and '),
        (
            "--train.time_limit 90 --checkpoint.save s",
            1,
            "train.time_limit is '90', no time; give HH:MM:SS or ",
        ),
        ("--train.time_limit 00:00:00 --checkpoint.save s", 1, "train.time_limit is '00:00:00', no time at all; give "),
        ("--train.time_limit 24:00:00", 1, "train.time_limit is given, but checkpoint.save is not, so the steps done "),
        ("--train.requeue_code 130 --checkpoint.save s", 1, "train.requeue_code is 130; give at most 125: shells "),
        ("--checkpoint.load nowhere", 1, "checkpoint.load is nowhere, which is no folder; "),
        ("--data.sources.0.index b", 1, "b/manifest.json: the manifest of the packed index is missing; pack "),
    ],
)
def test_a_combination_that_cannot_run_is_named(run, flags, world_size, said):
    (problem,) = run(flags, world_size)
    assert problem.startswith(said) and problem.endswith(".")


TE_FLAGS = "--parallel.attention te --parallel.context 4 "


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("", None),
        ("--data.document_mask true", None),
        ("--parallel.cp_comm_type all_gather", None),
        ("--parallel.cp_comm_type a2a", None),
        ("--parallel.cp_comm_type a2a+p2p --parallel.ulysses 2", None),
        (
            "--train.precision fp32",
            'train.precision is "fp32", in which Transformer Engine has no flash attention; set',
        ),
        (
            "--parallel.kernel cudnn",
            'parallel.kernel is "cudnn", which only parallel.attention "torch" reads; remove it, ',
        ),
        ("--parallel.device cpu", 'parallel.device is "cpu" with parallel.attention "te", which needs a GPU; set '),
        (
            "--parallel.head_groups 2 --parallel.recompute full",
            'parallel.head_groups is 2 with parallel.attention "te"',
        ),
        ("--parallel.recompute full --parallel.recompute_layers 2", None),
        (
            "--parallel.recompute selective --parallel.recompute_layers 2",
            'parallel.recompute_layers is 2 with parallel.recompute "selective", which under parallel.attention "te" ',
        ),
        (
            "--parallel.ulysses 2",
            'parallel.ulysses is 2, which parallel.attention "te" reads only with parallel.cp_comm_type "a2a+p2p", ',
        ),
        (
            "--parallel.cp_comm_type a2a+p2p --parallel.ulysses 4",
            'parallel.cp_comm_type is "a2a+p2p" with parallel.ulysses 4 of parallel.context 4; give ulysses a divisor ',
        ),
        (
            "--parallel.cp_comm_type a2a --parallel.context 8",
            'parallel.cp_comm_type is "a2a" and parallel.context 8 does not divide a rank\'s 4 key-value heads; give ',
        ),
        (
            "--parallel.cp_comm_type a2a --data.document_mask true",
            'data.document_mask is true with parallel.cp_comm_type "a2a", which takes documents from ',
        ),
        (
            "--data.sequence_length 2050 --data.sources.0.index odd --data.document_mask true "
            "--data.pad_to_divisible true",
            'data.pad_to_divisible is true with data.document_mask under parallel.attention "te", which must divide ',
        ),
        (
            "--parallel.cp_comm_type a2a --data.sources.1.index b --data.sources.1.document_mask true",
            'data.sources.1.document_mask is true with parallel.cp_comm_type "a2a", which takes documents from ',
        ),
    ],
)
def test_transformer_engine_beside_what_it_cannot_do(run, flags, said):
    pack("odd", sequence_length=2050)
    pack("b")
    found = run(TE_FLAGS + flags, 8)
    if importlib.util.find_spec("transformer_engine") is None:
        said_of_te = 'parallel.attention is "te", but Transformer Engine 2.9 to 2.20 is not installed; run pip install '
        (missing,) = [problem for problem in found if problem.startswith(said_of_te)]
        assert '--no-build-isolation "transformer-engine[pytorch]>=2.9,<2.21" on a machine with CUDA' in missing
        found.remove(missing)
    assert len(found) == (said is not None) and all(problem.startswith(said) for problem in found)


def test_masked_documents_take_one_sample_at_a_time(run):
    flags = "--data.document_mask true --train.micro_batch_size "
    assert run(flags + "1") == []
    (problem,) = run(flags + "2")
    assert "train.micro_batch_size is 2 with data.document_mask true" in problem


def test_one_masked_source_of_several_takes_one_sample_at_a_time(run):
    pack("short", separator=[1])
    flags = "--data.sources.1.index short --train.micro_batch_size 2"
    assert run(flags) == []
    (problem,) = run(f"{flags} --data.sources.1.document_mask true")
    assert problem.startswith("train.micro_batch_size is 2 with data.sources.1.document_mask true, but each sample ")
    assert run(f"{flags} --data.document_mask true --data.sources.0.document_mask false")[0].startswith(
        "train.micro_batch_size is 2 with data.document_mask true"
    )
    assert run(f"{flags} --data.blend iterations --train.global_batch_size 2") == []


def test_separators_without_loss_where_there_are_none(run):
    pack("separated", separator=[1])
    both = "--data.sources.1.index separated"
    assert run(f"{both} --data.loss_on_separators false") == []
    assert run(f"{both} --data.sources.1.loss_on_separators false") == []
    assert run(f"{both} --data.sources.0.loss_on_separators false") == [
        "data.sources.0.loss_on_separators is false, but a has no separators; remove data.sources.0.loss_on_separators."
    ]
    (problem,) = run(f"{both} --data.loss_on_separators false --data.sources.1.loss_on_separators true")
    assert problem.startswith("data.loss_on_separators is false, but no source has separators")


def test_sequence_parallel_divides_each_ranks_tokens(run):
    pack("odd", sequence_length=1028)
    flags = "--parallel.context 2 --parallel.tensor 4 --parallel.sequence_parallel true --data.sequence_length 1028"
    (problem,) = run(flags + " --data.sources.0.index odd", 8)
    assert problem.startswith("data.sequence_length / parallel.context is 514 tokens, not divisible by parallel.ten")


def test_a_length_that_ranks_do_not_divide_may_be_padded(run):
    pack("odd", sequence_length=1027)
    flags = "--data.sources.0.index odd --data.sequence_length 1027 --parallel.context 2 --parallel.tensor 4"
    flags += " --parallel.sequence_parallel true --data.pad_to_divisible true"
    assert run(flags, 8) == []
    for problem in run(flags.replace("divisible true", "divisible false"), 8):
        assert problem.endswith("or set data.pad_to_divisible to true.")


@pytest.mark.parametrize(
    ("length", "context", "tensor", "padded"),
    [(1027, 1, 1, 1027), (1027, 2, 1, 1028), (1028, 2, 1, 1028), (1027, 1, 4, 1028), (1027, 2, 4, 1032), (7, 4, 1, 8)],
)
def test_the_padded_length(length, context, tensor, padded):
    parallel = ParallelConfig(context=context, tensor=tensor, sequence_parallel=tensor > 1)
    data = DataConfig(sources=(), sequence_length=length, pad_to_divisible=True)
    train = TrainConfig(steps=1, global_batch_size=1)
    config = RunConfig(model=ModelConfig(hf=Path("m")), data=data, train=train, parallel=parallel)
    assert config.padded_length == padded


def test_without_kv_heads_in_config_json_the_heads_count(run):
    hf = {name: value for name, value in HF.items() if name != "num_key_value_heads"}
    assert run("--parallel.tensor 8", 8, hf) == []


def test_data_of_another_length_or_vocabulary(run):
    pack("short", sequence_length=1024)
    pack("wide", vocab_size=2000)
    short, wide = run("--data.sources.1.index short --data.sources.2.index wide")
    assert short.startswith("short/manifest.json: packed for sequence_length 1024, but data.sequence_length is 2048; ")
    assert wide.startswith("wide/manifest.json: tokens of a vocabulary of 2000, but the model has 1024; ")
    held_out = "--validation.sources.0.index short --validation.sources.1.index nothing"
    assert run(held_out)[0] == short
    assert run(held_out)[1].startswith("nothing/manifest.json: the manifest of the packed index is missing; pack ")


def test_a_manifest_without_an_entry(run):
    Path("half").mkdir()
    Path("half/manifest.json").write_text('{"sequence_length": 2048}')
    assert run("--data.sources.0.index half") == [
        "half/manifest.json: no entry 'vocab_size'; pack the data with tools/pack_corpus.py."
    ]


def test_a_run_that_can_resume_needs_no_start(run):
    Path("save/step_000002").mkdir(parents=True)
    assert run("--checkpoint.load none --checkpoint.save save") == []


def test_all_problems_come_at_once(run):
    assert len(run("--parallel.pipeline 4 --parallel.sequence_parallel true --model.init random", 3)) == 4


def test_places_where_nothing_can_be_written(run):
    Path("file").write_text("")
    assert run("--checkpoint.save file/x --log.metrics file/m.jsonl --log.tensorboard file") == [
        f"{name} needs the folder {folder}, but nothing can be written there; give another place."
        for name, folder in (("checkpoint.save", "file/x"), ("log.metrics", "file"), ("log.tensorboard", "file"))
    ]


def test_neither_a_divisor_nor_a_multiple_of_the_key_value_heads(run):
    (problem,) = run("--parallel.tensor 4", 4, {**HF, "num_attention_heads": 12, "num_key_value_heads": 6})
    assert problem.startswith("parallel.tensor is 4, neither a divisor nor a multiple of the model's 6 key-value heads")


@pytest.mark.parametrize(
    ("pipeline", "first", "last", "wanted"),
    [(4, 0, 0, [8] * 4), (4, 6, 0, None), (4, 5, 0, [5, 9, 9, 9]), (4, 7, 5, [7, 10, 10, 5]), (2, 17, 15, [17, 15])],
)
def test_layers_of_the_stages(pipeline, first, last, wanted):
    parallel = ParallelConfig(pipeline=pipeline, first_stage_layers=first, last_stage_layers=last)
    problems = list(stage_problems(parallel, 32))
    assert problems if wanted is None else (layers_of_stages(parallel, 32), problems) == (wanted, [])
