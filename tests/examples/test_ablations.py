"""The experiment as a program: its plan is read strictly, arms get equal tokens, a kill loses nothing.

What it finds is in examples/ablations/results and docs/ablations.md; here one arm runs in the shortest form there is.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _arms import Claim, Run, read_experiment
from _base import base_stages
from _pictures import draw_pictures
from _results import figures, mean_grid, read_results
from _stages import Stage, stages
from _table import AGREES, DISAGREES, NO_RESULTS, OPEN, interval, markdown, seeds_to_tell, t_quantile, verdict
from _work import StageFailedError, Work
from make_arm_data import MAKERS
from run import Chosen, pictures, show_table, train_base

from megatron_ultralong.data.tokenizer.chat import ChatTokenizer
from megatron_ultralong.errors import UserError

ROOT = Path(__file__).parents[2]
ARMS = ROOT / "examples/ablations/arms.toml"
BASE = "examples/tiny_cpu/base"
TINY = f"""
context = 256
[scales.tiny]
base = "{BASE}"
target = 512
steps = 8
batch = 1
learning_rate = 1e-4
tune_steps = 1
tune_learning_rate = 5e-5
chats = 8
needles = {{ lengths = 1, depths = 2, trials = 1 }}
short = 2
ruler = 0
ruler_beside = 0
windows = 1
[arms.recipe]
separator = "<s>"
rope = {{ kind = "yarn", form = "paper", alpha = 1.0, beta = 4.0 }}
tuned = false
[[plan]]
scale = "tiny"
arms = ["recipe"]
seeds = [3]
[[claims]]
name = "needles"
arm = "recipe"
measures = ["needles"]
above = 97.0
scales = ["tiny"]
[seconds]
start = 1.0
train_token = 1e-4
train_token_length = 1e-7
read_token = 1e-4
read_token_length = 1e-8
answer = 1.0
"""


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def flag(stage: Stage, name: str) -> str:
    return stage.words[stage.words.index(name) + 1]


def test_every_arm_sees_the_same_tokens_and_is_asked_the_same():
    experiment = read_experiment(ARMS)
    for scale, size in experiment.scales.items():
        asked = set()
        for arm in experiment.arms:
            found = stages(experiment, Run(scale, arm, 1))
            assert len(found) == len({stage.folder for stage in found})
            trained = [stage for stage in found if stage.name == "train"]
            step = [
                int(flag(stage, "--train.global_batch_size")) * int(flag(stage, "--data.sequence_length"))
                for stage in trained
            ]
            tokens = sum(each * int(flag(stage, "--train.steps")) for each, stage in zip(step, trained, strict=True))
            wanted = size.steps * size.batch * size.target if experiment.arms[arm].trained else 0
            exact = not wanted % max(step, default=1)
            assert tokens == wanted if exact else abs(tokens - wanted) <= sum(step) / 2, (scale, arm)
            asked.add(tuple(stage.folder for stage in found if stage.name == "prompts"))
        assert len(asked) == 1


def test_arms_differ_where_they_say_and_seeds_in_their_data():
    experiment = read_experiment(ARMS)

    def folders(arm: str, seed: int = 1) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for stage in stages(experiment, Run("x32", arm, seed)):
            found.setdefault(stage.name, set()).add(stage.folder)
        return found

    recipe = folders("recipe")
    moved = {
        "ntk": set(),
        "no_separator": {"pack_corpus"},
        "natural": {"pack_corpus", "resample"},
        "mixed": {"short", "tokens_short", "pack_short"},
        "two_steps": {"pack_corpus"},
        "untuned": {"chats", "tokens_chats", "pack_chats", "ruler", "tokens_ruler", "pack_ruler", "tune"},
    }
    for arm, names in moved.items():
        found = folders(arm)
        differ = {name for name in recipe.keys() | found.keys() if recipe.get(name) != found.get(name)}
        assert differ - {"train", "tune", "export", "answers", "perplexity"} == names - {"tune"}, arm
        assert {"train", "export", "answers"} <= differ or arm == "untuned"
    other = folders("recipe", seed=2)
    same = {name for name in recipe if recipe[name] == other[name]}
    assert same == {"data", "convert", "tokens_corpus"}


def test_every_rope_is_the_one_named():
    experiment = read_experiment(ARMS)

    def rope(arm: str) -> list[dict[str, str]]:
        return [
            {word[7:]: flag(stage, word) for word in stage.words if word.startswith("--rope.")}
            for stage in stages(experiment, Run("x32", arm, 1))
            if stage.name == "train"
        ]

    plain = {"form": "paper", "temperature": "false", "angles": "fp32"}
    assert rope("recipe") == [{"kind": "yarn", **plain, "alpha": "1.0", "beta": "4.0"}]
    assert rope("unscaled") == [{"kind": "linear", "original_length": "8192", **plain}]
    assert rope("coded") == [{**rope("recipe")[0], "form": "coded", "beta": "32.0", "temperature": "true"}]
    assert rope("fp64") == [{**rope("recipe")[0], "angles": "fp64"}]
    assert rope("two_steps") == rope("recipe") * 2


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("trained = false", "train = false", "train is not known; it takes trained"),
        ("steps = 60 ", 'steps = "60" ', "steps is '60'; give int."),
        ("context = 256 ", "# ", "context is missing; state it."),
        ('rope = { kind = "ntk" }', 'rope = { knd = "ntk" }', "arms.ntk: rope has no knd"),
        ("schedule = [0.5, 1.0]", "schedule = [1.0, 0.5]", "arms.two_steps: schedule is [1.0, 0.5]; lengths ascend"),
        ("schedule = [0.5, 1.0]", "schedule = [0.1, 1.0]", "do not make the 2 lengths of arms.two_steps; each"),
        ("schedule = [1.5]", "schedule = [2.5]", "arms.past: schedule is [2.5]; lengths ascend to 1.0"),
        ("short_share = 0.25", "short_share = 1.5", "arms.mixed: the shares leave nothing of the corpus"),
        ('against = "ntk"', 'against = "ntc"', "ntc is no arm; it has base, recipe"),
        ('scale = "x32"', 'scale = "x64"', "x64 is no scale; it has x8, x32"),
        ("[arms.recipe]", "[arms.ours]", "[arms.recipe] is missing; every other arm differs from it."),
        ("[seconds]", "[seconds", "not TOML"),
    ],
)
def test_a_mistake_in_the_plan_is_one_sentence(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = ARMS.read_text()
    assert old in text
    path = tmp_path / "arms.toml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError) as error:
        read_experiment(path)
    assert said in str(error.value) and str(path) in str(error.value)


def test_quantiles_of_students_t_are_those_of_its_density():
    for freedom in (1, 2, 4, 9, 29, 30, 31, 60):
        # P(|T| < q) by the angle a = atan(t / sqrt(n)): the density of a is proportional to cos(a) ** (n - 1)
        a = np.linspace(0, np.pi / 2, 200_001)
        density = np.cos(a) ** (freedom - 1)
        inside = a <= np.arctan(t_quantile(freedom) / np.sqrt(freedom))
        assert np.trapezoid(density[inside], a[inside]) / np.trapezoid(density, a) == pytest.approx(0.95, abs=5e-5)


def test_an_interval_is_students():
    found = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.mean, found.seeds) == (3.0, 5)
    assert found.half == pytest.approx(2.776 * np.sqrt(2.5 / 5), abs=1e-9)
    assert interval([7.0]).half == float("inf")
    assert seeds_to_tell([1.0, 2.0, 3.0, 4.0, 5.0], 2.9) is None
    n = seeds_to_tell([1.0, 2.0, 3.0, 4.0, 5.0], 2.0)
    assert n == 13  # 2.179 x sqrt(2.5 / 13) = 0.956 < 1, and 2.201 x sqrt(2.5 / 12) = 1.005 is not


def result(arm: str, seed: int, **measures: float) -> dict[str, Any]:
    stage = {"command": "", "seconds": 1.0, "cpu_seconds": 1800.0, "attempts": 1}
    stages = {f"train-{arm}{seed}": stage, "data-0": stage}
    return {"scale": "x32", "arm": arm, "seed": seed, "measures": measures, "stages": stages, "git_commit": "0" * 40}


def test_verdicts_are_of_differences_within_a_seed():
    base, gains = [60.0, 80.0, 40.0, 90.0, 20.0], [3.0, 4.0, 5.0, 4.0, 4.0]
    results = [result("a", seed, long=base[seed] + gains[seed], loss_long=2 - gains[seed] / 10) for seed in range(5)]
    results += [result("b", seed, long=base[seed], loss_long=2.0) for seed in range(5)]
    results += [result("b", 9, long=0.0, loss_long=9.0)]  # no partner: not counted

    def said(arm: str, against: str, above: float, measure: str = "long") -> dict[str, Any]:
        return verdict(Claim("c", arm, (measure,), above, ("x32",), against), "x32", measure, results)

    row = said("a", "b", 0.0)
    assert (row["mean"], row["seeds"], row["verdict"]) == (4.0, 5, AGREES)
    assert row["low"] == pytest.approx(4 - 2.776 * np.sqrt(0.5 / 5))
    assert said("b", "a", 0.0)["verdict"] == DISAGREES
    assert said("a", "b", 0.0, "loss_long")["verdict"] == AGREES  # less is better
    row = said("a", "b", 3.8)
    assert row["verdict"] == OPEN
    assert row["more"] == "51 seeds in all if mean and spread stay, 46.0 core hours more"
    assert said("a", "c", 0.0)["seeds"] == 0
    assert said("a", "", 99.0)["verdict"] == DISAGREES


def test_the_table_compares_each_arm_with_the_recipe_seed_by_seed():
    results = [result("recipe", seed, long=50.0 + seed, loss_long=2.0) for seed in (1, 2, 3)]
    results += [result("ntk", seed, long=40.0 + 2 * seed, loss_long=2.0 + seed / 10) for seed in (1, 2, 3)]
    lines = markdown(read_experiment(ARMS), results).splitlines()
    start = lines.index("Better than the recipe by, paired by seed (x32; bold: the interval leaves out 0):")
    # -9, -8 and -7 points; 0.1, 0.2 and 0.3 nats more: 4.303 errors of 1 / sqrt(3) and of a tenth of it
    assert lines[start + 2 :] == [
        "| arm | long | loss_long | seeds |", "|---|---|---|---|", "| ntk | **-8.0 ± 2.5** | -0.200 ± 0.248 | 3 |"
    ]  # fmt: skip


def test_pictures_are_of_what_seeds_have_in_common(tmp_path: Path) -> None:
    spans = {f"16384 {low}-{high}": 20.0 for low, high in ((0, 32), (32, 8192), (8192, 16384))}
    results = [
        result(arm, seed, long=50.0 + seed, loss_long=2.0, needles_worst_length=45.0)
        | {"scale": scale, "needles": {"4096": "100 90", "8192": f"80 {10 * seed}"}, "perplexity": spans}
        | {"scores": {"needles 4096": [95.0, 20], "needles 8192": [40.0 + 5 * seed, 20]}}
        for scale, arm, seeds in (("x32", "recipe", (1, 2)), ("x32", "ntk", (2, 3)), ("x32_grid", "best", (1, 2)))
        for seed in seeds
    ]
    experiment = read_experiment(ARMS)
    assert [path.name for path in draw_pictures(experiment, results, tmp_path)] == ["ablations_c.png"]
    results += [results[-1] | {"arm": "base"}]
    assert [path.name for path in draw_pictures(experiment, results, tmp_path)] == ["heatmap.png", "ablations_c.png"]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in tmp_path.iterdir())
    rows = mean_grid([each["needles"] for each in results if each["scale"] == "x32_grid" and each["arm"] == "best"])
    assert [(row["length"], row["depth"], row["score"]) for row in rows] == [
        (4096, 0.0, 100.0), (4096, 1.0, 90.0), (8192, 0.0, 80.0), (8192, 1.0, 15.0)
    ]  # fmt: skip
    for above, said in ((47.5, AGREES), (47.6, DISAGREES)):
        claim = Claim("a", "best", ("needles_worst_length",), above, ("x32_grid",), pooled=True)
        row = verdict(claim, "x32_grid", claim.measures[0], results)
        assert (row["mean"], row["verdict"]) == (47.5, f"{said}, as found")
        assert row["more"] == "at 8,192 tokens, 40 needles of all seeds"
        for bound, sign in ((row["low"], 1), (row["high"], -1)):  # what was found is 1.96 errors of the bound from it
            assert 47.5 - bound == pytest.approx(sign * 1.959964 * np.sqrt(bound * (100 - bound) / 40))


def test_the_table_is_of_the_runs_that_were_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, one in (("a", result("ntk", 1, long=1.0)), ("b", result("ntk", 2, long=2.0))):
        (tmp_path / f"{name}.json").write_text(json.dumps(one | {"format": 1}))
    show_table(Chosen(results=tmp_path, scale=("x32",), arm=("ntk",), seed=(2,)))
    assert "| ntk | 2.0 | 1 |" in capsys.readouterr().out


def test_what_is_no_result_no_model_or_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    for command, said in (
        (lambda: show_table(Chosen(results=tmp_path)), "a.json: not a run's result of format 1; delete it"),
        (lambda: show_table(Chosen(results=tmp_path / "none")), "none, where there is no folder; run.py run makes it"),
        (lambda: show_table(Chosen(seed=(99,))), "--seed 99 is not in the plan; it has 1, 2"),
        (lambda: pictures(Chosen(), output=tmp_path / "a.json"), "--output is .*a.json, where nothing can be written"),
        (lambda: train_base(base="", output=tmp_path), "--base is empty, where there is no config.json"),
    ):
        with pytest.raises(UserError, match=said):
            command()


def test_figures_are_means_over_lengths_and_tasks():
    def scored(task: str, length: int, score: float) -> dict[str, Any]:
        return {"task": task, "length": length, "score": score}

    answers = {"scores": [
        scored("needles", 256, 100.0), scored("needles", 512, 80.0), scored("needles", 1024, 60.0),
        scored("ruler/vt", 512, 18.0), scored("ruler/vt", 1024, 8.0), scored("ruler/niah_multikey_1", 1024, 4.0),
        scored("ruler/vt", 2048, 2.0), scored("recall", 256, 99.0), scored("ruler/vt", 256, 66.0),
    ]}  # fmt: skip
    rows = [(1024, 0, 32, 8.0, 62), (1024, 32, 256, 4.0, 186), (1024, 256, 512, 9.0, 256), (1024, 512, 1024, np.e, 512),
            (2048, 1024, 2048, np.e**2, 1024)]  # fmt: skip
    names = ("length", "from", "to", "perplexity", "tokens")
    found = figures(answers, {"perplexity": [dict(zip(names, row, strict=True)) for row in rows]}, 1024, 256)
    assert found == {
        "needles": 80.0, "needles_worst_length": 60.0, "long": (60 + 6) / 2, "ruler": 10.0, "ruler_past": 2.0,
        "short": 99.0, "short_ruler": 66.0, "loss_short": round(float((62 * np.log(8) + 186 * np.log(4)) / 248), 5),
        "loss_long": 1.0, "loss_past": 2.0,
    }  # fmt: skip


def test_the_page_has_the_results_that_there_are():
    page = (ROOT / "docs/ablations.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"<!-- run.py table -->\n(.*)\n<!-- end -->", page, re.DOTALL)
    assert shown == markdown(read_experiment(ARMS), read_results(ROOT / "examples/ablations/results"))
    assert markdown(read_experiment(ARMS), []) == NO_RESULTS


def test_chats_in_rulers_wording_fit_the_base_and_say_what_the_text_says():
    import random

    tokenizer = ChatTokenizer(ROOT / BASE)
    made = MAKERS["ruler"](["one line\nand another\n" * 50], tokenizer, 256, random.Random(5))
    kinds = set()
    for _ in range(30):
        field, chat = next(made)
        assert field == "messages" and isinstance(chat, list)
        asked, said = (message["content"] for message in chat)
        assert len(tokenizer.encode(tokenizer.render(chat))) <= 256
        if "VAR" in asked:
            value = re.findall(r"hold the value (\d+)", asked)[0]
            told = dict(re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", asked))
            names = said.rpartition(": ")[2].split()
            assert [told[name] for name in names] == [value, *names[:-1]]
        else:
            key = re.findall(r"belongs? to ([\w-]+) by", asked)[0]
            told_values = re.findall(rf"{key} has (\d+)", asked)
            assert re.findall(r"\d{7}", said) == told_values
        kinds.add("chain" if "VAR" in asked else re.findall("secret numbers? belongs? to", asked)[0])
    assert len(kinds) == 3


def test_short_pieces_are_whole_lines_within_the_length():
    import random

    tokenizer, text = ChatTokenizer(ROOT / BASE), (ROOT / "examples/ablations/run.py").read_text()
    pieces = [piece for _, piece in MAKERS["short"]([text], tokenizer, 64, random.Random(1))]
    assert len(pieces) > 10 and all(len(tokenizer.encode(str(piece))) <= 64 for piece in pieces)
    assert "".join(map(str, pieces)) in (
        text,
        "".join(line for line in text.splitlines(True) if line in "".join(pieces)),
    )


def test_the_bases_lessons_follow_each_other(tmp_path: Path) -> None:
    found = base_stages(read_experiment(ARMS), BASE, 10, 1, tmp_path / "base")
    written = {"data", *(stage.folder for stage in found)}
    for number, stage in enumerate(found):
        read = {word.split("/")[1] for word in stage.words if word.startswith("@/")}
        assert read <= {earlier.folder for earlier in found[:number]}, stage.name
    assert found[-1].words[-3:] == ("--overwrite", "--verify", "logits") and len(written) == len(found) + 1


def test_a_stage_that_fails_says_so_and_is_given_again(tmp_path: Path) -> None:
    count = tmp_path / "count"
    code = f"import pathlib; p = pathlib.Path({str(count)!r}); n = len(p.read_text()) if p.exists() else 0; " \
           "p.write_text('x' * (n + 1)); print('met trouble'); raise SystemExit(0 if n else 3)"  # fmt: skip
    stage, work = Stage("try", ("python", "-c", code), (), 1.0), Work(tmp_path / "work")
    with pytest.raises(StageFailedError, match=r"try-\w+ ended with 3(.|\n)*met trouble"):
        work.ensure(stage)
    assert work.ensure(stage)["attempts"] == 2
    assert work.ensure(stage)["attempts"] == 2 and len(count.read_text()) == 2
    with work.locked("held"), pytest.raises(BlockingIOError), Work(tmp_path / "work").locked("held", wait=False):
        pass


class Killed:
    """One arm's run, whose training was killed with its run.py and went on; then its training done again at one go."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "arms.toml").write_text(TINY)
        self.words = [sys.executable, "examples/ablations/run.py", "run", "--plan", str(folder / "arms.toml"),
                      "--work", str(folder / "work"), "--results", str(folder / "results")]  # fmt: skip
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.kill_in_training()
        self.output = self.run()
        self.train = self.stage("train")
        self.record = json.loads((self.train / "done.json").read_text())
        self.result = json.loads((folder / "results/tiny_recipe_3.json").read_text())
        self.losses, self.weights = self.trained()
        self.second = self.run()
        for name in ("train", "export"):
            shutil.rmtree(self.stage(name))
        (folder / "results/tiny_recipe_3.json").unlink()
        self.run()
        self.again = json.loads((folder / "results/tiny_recipe_3.json").read_text())
        self.losses_again, self.weights_again = self.trained()

    def stage(self, name: str) -> Path:
        (found,) = (self.folder / "work").glob(f"{name}-*")
        return found

    def kill_in_training(self) -> None:
        running = subprocess.Popen(
            self.words, cwd=ROOT, env=self.environment, start_new_session=True, stderr=subprocess.DEVNULL
        )
        try:
            while not list((self.folder / "work").glob("train-*/run/step_000002/ultralong.json")):
                assert running.poll() is None, "it ended before it was killed"
                time.sleep(0.01)
        finally:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()

    def run(self) -> str:
        done = subprocess.run(self.words, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def trained(self) -> tuple[dict[int, float], bytes]:
        rows = [json.loads(line) for line in (self.stage("train") / "run/metrics.jsonl").read_text().splitlines()]
        return {row["step"]: row["loss"] for row in rows}, (
            self.stage("export") / "model/model.safetensors"
        ).read_bytes()


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killed]:
    yield Killed(tmp_path_factory.mktemp("ablations"))


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_as_one_that_was_not(killed: Killed) -> None:
    assert killed.record["attempts"] == 2
    assert sorted(killed.losses) == list(range(1, 9))
    assert killed.losses == killed.losses_again
    assert killed.weights == killed.weights_again
    assert killed.again["stages"][killed.train.name]["attempts"] == 1
    assert killed.again["measures"] == killed.result["measures"]


@pytest.mark.slow
def test_a_run_leaves_its_figures_with_what_made_them(killed: Killed) -> None:
    result = killed.result
    assert (result["arm"], result["scale"], result["seed"], result["target"]) == ("recipe", "tiny", 3, 512)
    assert set(result["measures"]) == {
        "needles", "needles_worst_length", "long", "short", "short_ruler", "loss_short", "loss_long", "loss_past"
    }  # fmt: skip
    assert 1 < result["measures"]["loss_long"] < 4 and list(result["needles"]) == ["512"]
    assert {"data", "train", "export", "answers", "perplexity"} <= {name.split("-")[0] for name in result["stages"]}
    assert all(str(killed.folder) not in stage["command"] for stage in result["stages"].values())
    assert killed.second == "1 of 1 runs stand; run.py table shows them\n"  # a result that stands is not made again


@pytest.mark.slow
def test_what_ran_is_in_the_table_and_the_report(killed: Killed) -> None:
    table = [*killed.words[:2], "table", *killed.words[3:5], *killed.words[7:]]
    done = subprocess.run(table, cwd=ROOT, env=killed.environment, capture_output=True, text=True, check=True)
    assert (
        "| needles | tiny | needles above 97 | - | - | 1 | cannot tell | at least two seeds are needed |" in done.stdout
    )
    done = subprocess.run([*table, "--form", "json"], cwd=ROOT, env=killed.environment, capture_output=True, check=True)
    assert json.loads(done.stdout)["claims"][0]["verdict"] == OPEN
    report = [*killed.words[:2], "report", *killed.words[3:], "--seed", "3", "--scale", "tiny"]
    subprocess.run(report, cwd=ROOT, env=killed.environment, capture_output=True, text=True, check=True)
    compared = json.loads((killed.folder / "work/report_tiny_3/compare.json").read_text())
    assert list(compared["models"]) == ["recipe"] and compared["extra"]["claims"][0]["seeds"] == 1
