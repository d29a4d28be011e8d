import dataclasses
import json
from pathlib import Path

import pytest

from megatron_ultralong.config.reading import load_config, resolved
from megatron_ultralong.config.sections import DataSource, RunConfig
from megatron_ultralong.errors import UserError

MINIMAL = """\
[model]
hf = "models/tiny"

[data]
sequence_length = 2048

[[data.sources]]
index = "packed/a"

[train]
steps = 30
global_batch_size = 4
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text)
    return path


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_minimal_file_takes_the_defaults(tmp_path):
    config = load_config(write(tmp_path, MINIMAL))
    assert config.model.hf == Path("models/tiny")
    assert config.data.sources == (DataSource(index=Path("packed/a"), weight=1.0),)
    assert (config.data.sequence_length, config.train.steps, config.train.global_batch_size) == (2048, 30, 4)
    assert (config.rope.beta, config.optimizer.learning_rate, config.checkpoint.save) == (4.0, 3e-5, None)


def test_every_way_of_writing_toml_is_the_same(tmp_path):
    other = """
train = { steps = 30, global_batch_size = 4 }
model.hf = 'models/tiny'
data = { sequence_length = 2_048, sources = [{ index = "packed/a" }] }
"""
    assert load_config(write(tmp_path, other)) == load_config(write(tmp_path, MINIMAL))


def test_a_whole_number_serves_as_a_float(tmp_path):
    config = load_config(write(tmp_path, MINIMAL + "[optimizer]\nclip_grad = 2\n"))
    assert config.optimizer.clip_grad == 2.0 and type(config.optimizer.clip_grad) is float


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("stepz = 3", "{path}, line 13: unknown key train.stepz, the nearest is steps; mend or remove it."),
        ("[trian]\nsteps = 3", "{path}, line 13: unknown section [trian], the nearest is train; mend or remove it."),
        (
            'precision = "fp16"',
            '{path}, line 13: train.precision is "fp16"; give one of "fp32", "bf16".',
        ),
        ("seed = 1.0", "{path}, line 13: train.seed is 1.0; give a whole number."),
        ("seed = true", "{path}, line 13: train.seed is true; give a whole number."),
        ('[optimizer]\neps = "small"', '{path}, line 14: optimizer.eps is "small"; give a finite number.'),
        ("[optimizer]\neps = nan", "{path}, line 14: optimizer.eps is nan; give a finite number."),
        ("[optimizer]\neps = true", "{path}, line 14: optimizer.eps is true; give a finite number."),
        ("[rope]\ntemperature = 1", "{path}, line 14: rope.temperature is 1; give true or false."),
        ("[checkpoint]\nload = 3", "{path}, line 14: checkpoint.load is 3; give a path."),
        ('[checkpoint]\nload = ""', '{path}, line 14: checkpoint.load is ""; give a path.'),
        ("[[data.sources]]\nweight = 2", "{path}, line 13: data.sources.1.index is missing; give a path."),
        (
            '[[data.sources]]\nindex = "b"\nwieght = 2',
            "{path}, line 15: unknown key data.sources.1.wieght, the nearest is weight; mend or remove it.",
        ),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path, extra, expected):
    path = write(tmp_path, MINIMAL + extra + "\n")
    assert message(path) == expected.format(path=path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (MINIMAL.replace("steps = 30\n", ""), "{path}, line 10: train.steps is missing; give a whole number."),
        (MINIMAL.replace('[model]\nhf = "models/tiny"\n', ""), "{path}: model.hf is missing; give a path."),
        (
            "data = 3\n" + MINIMAL[: MINIMAL.index("[data]")] + MINIMAL[MINIMAL.index("[train]") :],
            "{path}, line 1: data is 3; give a table, [data].",
        ),
        (
            MINIMAL.replace("[[data.sources]]", "[data.sources]"),
            "{path}, line 7: data.sources is {{'index': 'packed/a'}}; "
            'give at least one table with an index, such as [{{ index = "packed" }}].',
        ),
        (
            MINIMAL.replace('[[data.sources]]\nindex = "packed/a"\n', "sources = []\n"),
            "{path}, line 7: data.sources is []; "
            'give at least one table with an index, such as [{{ index = "packed" }}].',
        ),
    ],
)
def test_a_missing_or_misplaced_table_is_named(tmp_path, text, expected):
    path = write(tmp_path, text)
    assert message(path) == expected.format(path=path)


def test_all_mistakes_come_at_once(tmp_path):
    path = write(tmp_path, MINIMAL.replace("steps", "step") + "seed = 'x'\n[rope]\nkind = \"yarm\"\n")
    assert message(path, "--log.interval", "often").splitlines() == [
        f"{path} has 5 mistakes:",
        f"  {path}, line 11: unknown key train.step, the nearest is steps; mend or remove it.",
        f"  {path}, line 10: train.steps is missing; give a whole number.",
        f'  {path}, line 13: train.seed is "x"; give a whole number.',
        f'  {path}, line 15: rope.kind is "yarm"; give one of "keep", "ultralong", "linear", "ntk", "llama3", "yarn".',
        '  --log.interval is "often"; give a whole number.',
    ]


def test_a_file_that_is_not_there_or_not_toml(tmp_path):
    assert message(tmp_path / "none.toml").startswith(f"{tmp_path / 'none.toml'}: the configuration is missing; give")
    path = write(tmp_path, "[model\nhf = 3")
    assert message(path).startswith(f"{path}: not TOML: ") and "line 1" in message(path)
    path.write_bytes(b"\xff\xfe")
    assert message(path).startswith(f"{path}: the configuration cannot be read (")


def test_flags_win_over_the_file_and_take_their_fields_types(tmp_path):
    flags = "--train.steps 40 --optimizer.learning-rate=1e-4 --optimizer.clip_grad -0.5 --rope.temperature True"
    more = "--checkpoint.save out/run --checkpoint.load none --rope.kind yarn --data.sources.0.weight 3"
    config = load_config(write(tmp_path, MINIMAL + '[checkpoint]\nload = "x"\n'), f"{flags} {more}".split())
    assert config.train.steps == 40
    assert (config.optimizer.learning_rate, config.optimizer.clip_grad) == (1e-4, -0.5)
    assert config.rope.temperature is True and config.rope.kind == "yarn"
    assert (config.checkpoint.save, config.checkpoint.load) == (Path("out/run"), None)
    assert config.data.sources == (DataSource(index=Path("packed/a"), weight=3.0),)


@pytest.mark.parametrize(
    "words", ["--validation.needles 8 16", "--validation.needles 8,16", "--validation.needles=8,16"]
)
def test_a_list_is_several_words_or_one(tmp_path, words):
    config = load_config(write(tmp_path, MINIMAL), [*words.split(), "--train.steps", "40"])
    assert config.validation.needles == (8, 16) and config.train.steps == 40


def test_what_the_file_gives_can_be_taken_away(tmp_path):
    path = write(tmp_path, MINIMAL + '[validation]\nkeep_best = "loss/a"\nneedles = [8]\n[log]\nwandb = ""\n')
    config = load_config(path, ["--validation.keep_best", "", "--validation.needles="])
    assert (config.validation.keep_best, config.validation.needles, config.log.wandb) == ("", (), "")


def test_a_source_says_for_itself_how_it_is_read(tmp_path):
    """Or leaves it to the section, in the file as by a flag."""
    more = '[[data.sources]]\nindex = "packed/b"\ndocument_mask = true\nloss_on_first_tokens = false\n'
    path = write(tmp_path, MINIMAL + more)
    data = load_config(path).data
    assert data.masks == (False, True) and data.mask_field == "data.sources.1.document_mask"
    assert [dataclasses.astuple(data.options(source)) for source in data.sources] == [
        (False, True, True),
        (True, True, False),
    ]
    flags = "--data.document_mask true --data.loss_on_separators false --data.sources.0.loss_on_separators true"
    data = load_config(path, [*flags.split(), "--data.sources.1.document_mask", "none"]).data
    assert data.masks == (True, True) and data.mask_field == "data.document_mask"
    assert [data.options(source).loss_on_separators for source in data.sources] == [True, False]
    where = f"{path}, line 15: data.sources.1.document_mask"
    path.write_text(path.read_text().replace("document_mask = true", "document_mask = 1"))
    assert message(path) == f"{where} is 1; give true or false."


def test_sources_are_named_by_their_folders_or_where_those_are_alike_by_path(tmp_path):
    path = write(tmp_path, MINIMAL)
    assert load_config(path, ["--data.sources.1.index", "other/b"]).data.names == ("a", "b")
    assert load_config(path, ["--data.sources.1.index", "other/a"]).data.names == ("packed/a", "other/a")


def test_flags_supply_what_the_file_leaves_out(tmp_path):
    path = write(tmp_path, '[model]\nhf = "m"\n[train]\nglobal_batch_size = 4\n')
    flags = "--train.steps 3 --data.sequence_length 64 --data.sources.0.index a --data.sources.1.index b".split()
    config = load_config(path, flags)
    assert [source.index for source in config.data.sources] == [Path("a"), Path("b")]
    assert config.train.steps == 3


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--train.stepz 3", "--train.stepz is not a field, the nearest is --train.steps; see --help."),
        ("--train.steps", "--train.steps has no value; give --train.steps VALUE."),
        ("--train.steps --log.interval 3", "--train.steps has no value; give --train.steps VALUE."),
        ("--train.steps 3.5", '--train.steps is "3.5"; give a whole number.'),
        ("--optimizer.eps=inf", '--optimizer.eps is "inf"; give a finite number.'),
        ("--rope.temperature yes", '--rope.temperature is "yes"; give true or false.'),
        (
            "--rope.kind ntkk",
            '--rope.kind is "ntkk"; give one of "keep", "ultralong", "linear", "ntk", "llama3", "yarn".',
        ),
        ("--data.sources.2.index b", "--data.sources.2.index skips a number; the next source is number 1."),
        ("40", "'40' on the command line belongs to no flag; give --section.field value."),
    ],
)
def test_a_bad_flag_is_named(tmp_path, flags, expected):
    assert message(write(tmp_path, MINIMAL), *flags.split()) == expected


def test_an_unlike_flag_gets_no_guess(tmp_path):
    assert message(write(tmp_path, MINIMAL), "--qqq", "1") == "--qqq is not a field; see --help."


def test_resolved_is_json_and_says_what_the_run_was_made_with(tmp_path):
    config = load_config(write(tmp_path, MINIMAL))
    record = json.loads(json.dumps(resolved(config, world_size=2)))
    assert record["world_size"] == 2
    open_fields = ("document_mask", "loss_on_separators", "loss_on_first_tokens")
    assert record["data"]["sources"] == [{"index": "packed/a", "weight": 1.0, **dict.fromkeys(open_fields)}]
    assert record["optimizer"]["beta2"] == 0.95 and record["checkpoint"]["load"] is None
    assert set(record) == {*RunConfig.__dataclass_fields__, "versions", "git_commit", "world_size"}
    assert set(record["versions"]) == {"python", "megatron-ultralong", "torch", "megatron-core", "transformers"}
    assert record["versions"]["megatron-core"].startswith("0.16.")
    assert record["git_commit"] is None or len(record["git_commit"].removesuffix("-dirty")) == 40
