"""What the house promises of itself: commands that exist, rooms that keep apart, a core that imports nothing heavy."""

import ast
import importlib.metadata
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import megatron_ultralong
from megatron_ultralong.config.reading import load_config

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "megatron_ultralong"
SOURCES = sorted(PACKAGE.rglob("*.py"))
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
OPTIONAL = ("transformer_engine", "apex", "tensorboard", "wandb", "tyro")


def shell_lines(page: Path) -> list[str]:
    """Commands in a page's bash blocks, continued lines joined."""
    blocks = re.findall(r"^```(?:bash|sh|shell)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].removeprefix("$ ") for line in lines if line and not line.startswith("#")]


def in_python(code: str) -> None:
    """Run a program in a fresh interpreter, which must end well."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def blocking(*names: str) -> str:
    """The beginning of a program in which these packages cannot be imported."""
    return f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r} or name in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}} (blocked)", name=name)
sys.meta_path.insert(0, Blocked())
"""


def imported(path: Path) -> set[str]:
    """Dotted names of everything that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_the_docs_exist(page):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for line in shell_lines(page):
        words = line.split()
        for word, following in zip(words, [*words[1:], ""], strict=True):
            if re.match(r"(tools|examples|docs|tests|megatron_ultralong)/", word):
                assert (ROOT / word).exists(), line
            if word == "-m" and following.startswith("megatron_ultralong"):
                assert (ROOT / following.replace(".", "/")).with_suffix(".py").exists(), line
            if word == "make" and re.fullmatch("[a-z][a-z-]*", following):
                assert following in targets, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_in_the_docs_lead_somewhere(page):
    for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link


def names_in(path: Path) -> set[str]:
    """Functions and classes at the top of a file, and methods as Class.method."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
    return found


def test_every_function_in_the_call_graphs_exists():
    page = (ROOT / "docs" / "step.md").read_text(encoding="utf-8")
    named = re.findall(r"([a-z_0-9/]+\.py):([A-Za-z_.]+[A-Za-z_])", page)
    assert len(named) > 60
    for file, name in named:
        assert name in names_in(PACKAGE / file), f"docs/step.md: {file}:{name}"
    for file in re.findall(r"(?<![\w/])((?:[a-z_]+/)+[a-z_]+\.(?:py|hpp))(?!:)", page):
        assert (PACKAGE / file).exists() or (ROOT / file).exists(), f"docs/step.md: {file}"


def test_files_stay_small():
    too_long = {str(path.relative_to(ROOT)): n for path in SOURCES if (n := len(path.read_text().splitlines())) > 300}
    assert too_long == {}


LAYERS = (
    ("errors", "leftovers"),
    ("files", "progress", "processes", "config.data_section"),
    ("config.validation_section",),
    ("config.sections", "families"),
    ("config.stages", "rope", "provenance", "engine"),
    ("checkpoint", "data.packing._packing", "data.corpus", "data.tokenizer", "context_parallel"),
    ("data.shuffle", "model"),
    ("data.tokenizing", "data.resampling", "planning", "config.validation_checks"),
    ("data.packing", "data.adopting", "data.decontamination", "config.checks"),
    ("data.reading", "config.reading", "planning.search"),
    ("cli", "convert.formats", "evaluation.benchmarks.keys"),
    ("convert.parameter_mapping", "convert.hf_config", "convert.average", "convert.workers", "convert.output"),
    ("convert.folding",),
    ("convert.proof",),
    ("convert", "training", "evaluation.samples", "evaluation.run_folder", "evaluation.corpus_texts"),
    ("evaluation.registry", "evaluation.backends", "evaluation.report", "train", "rehearsal"),
    ("evaluation.rendering",),
    ("evaluation.benchmarks",),
    ("evaluation",),
)
"""The plan of the house, lowest first: a file imports from layers below its own, and from its own folder.

A name stands for a file, or for a folder and all in it; the longest that fits counts.
"""


def module_of(path: Path) -> str:
    """A file's dotted name inside the package; of an __init__.py its folder's."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in SOURCES}


def plan_of(module: str) -> tuple[int, str]:
    """A module's layer, and the name in the plan that puts it there."""
    fitting = [(name, i) for i, names in enumerate(LAYERS) for name in names if f"{module}.".startswith(f"{name}.")]
    assert fitting, f"{module} has no place in the plan: give it one in LAYERS, and in README's map"
    name, layer = max(fitting, key=lambda found: len(found[0]))
    return layer, name


def imports_of(module: str) -> set[str]:
    """The package's own modules that a module imports, wherever in it."""
    found = set()
    for name in imported(MODULES[module]):
        name = name.removeprefix("megatron_ultralong.") if name.startswith("megatron_ultralong.") else ""
        while name and name not in MODULES and name != "data.packing._packing":
            name = name.rpartition(".")[0]
        found.add(name)
    return found - {"", module}


@pytest.mark.parametrize("module", sorted(name for name in MODULES if MODULES[name].name != "__init__.py"))
def test_imports_run_one_way(module):
    layer, own = plan_of(module)
    for other in imports_of(module):
        its, theirs = plan_of(other)
        up = its > layer or (its == layer and theirs != own)
        assert not up, f"{MODULES[module]} imports {other}, which lies above it or beside it: see LAYERS"


def test_no_two_files_import_each_other():
    """Not in a circle of any length either."""
    waiting = {module: imports_of(module) & MODULES.keys() for module in MODULES}
    while ready := [module for module, others in waiting.items() if not others]:
        for module in ready:
            del waiting[module]
        waiting = {module: others.difference(ready) for module, others in waiting.items()}
    assert waiting == {}


def test_every_file_has_a_name_of_its_own():
    names = [path.name for path in SOURCES if path.name != "__init__.py"]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_functions_stay_short():
    too_long = {}
    for path in [*SOURCES, *(ROOT / "tools").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and (n := (node.end_lineno or 0) - node.lineno + 1) > 50:
                too_long[f"{path.relative_to(ROOT)}:{node.name}"] = n
    assert too_long == {}


PIPES = {"engine/checkpoint_writer.py"}
"""Files that unpickle what a process of the same run has just written."""


def test_nothing_from_outside_is_unpickled_but_by_names_on_a_list():
    """Every call that could run what a file says, with the argument that keeps it from doing so."""
    safe = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
    found = []
    for path in [*SOURCES, *(ROOT / "tools").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called, options = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert options.get("trust_remote_code", "False") == "False", f"{path}: {called}"
            if called in safe:
                name, value = safe[called]
                assert options.get(name) == str(value), f"{path}: {called} without {name}={value}"
                found.append(called)
            if called in ("pickle.load", "pickle.loads", "pickle.Unpickler"):
                assert str(path.relative_to(PACKAGE)) in PIPES, f"{path}: {called}"
                found.append(called)
    assert {*safe, "pickle.loads"} <= set(found)


def test_the_map_in_the_readme_is_the_plan():
    rows = set(re.findall(r"^\| `megatron_ultralong/([a-z_/]+)/?` \|", (ROOT / "README.md").read_text(), re.MULTILINE))
    folders = {str(path.parent.relative_to(PACKAGE)) for path in SOURCES if path.parent != PACKAGE}
    assert {row.rstrip("/") for row in rows} == folders


def test_two_packages_have_one_door():
    """megatron.core is the engine's, tyro the command line's."""
    for path in SOURCES:
        names = imported(path)
        room = path.relative_to(PACKAGE).parts[0]
        assert room == "engine" or not any(name.split(".")[0] == "megatron" for name in names), path
        assert room == "cli.py" or not any(name.split(".")[0] == "tyro" for name in names), path


def test_the_configuration_the_rope_the_data_and_the_planning_need_no_torch():
    blocked = ("torch", "megatron", "transformers", *OPTIONAL)
    rooms = ["cli", "files", "progress"]
    for room in ("config", "rope", "families", "data", "planning"):
        found = pkgutil.walk_packages([str(PACKAGE / room)], f"{room}.")
        rooms += [module.name for module in found]
    in_python(blocking(*blocked) + "\n".join(f"import megatron_ultralong.{room}" for room in rooms))


def test_the_context_parallel_plan_needs_no_process_group():
    in_python(
        "import megatron_ultralong.context_parallel.zigzag, sys\n"
        "sys.exit('torch.distributed' in sys.modules and 'the cut of the sequence is pure arithmetic')"
    )


def test_everything_imports_without_the_optional_packages():
    modules = [module.name for module in pkgutil.walk_packages(megatron_ultralong.__path__, "megatron_ultralong.")]
    assert "megatron_ultralong.engine.mcore" in modules and "megatron_ultralong.train" in modules
    in_python(blocking(*OPTIONAL) + "\n".join(f"import {module}" for module in modules))


def test_importing_the_engine_leaves_torch_as_it_is():
    modules = [module.name for module in pkgutil.iter_modules([str(PACKAGE / "engine")])]
    assert {"cpu", "device", "groups", "mcore"} <= set(modules)
    imports = "\n".join(f"import megatron_ultralong.engine.{name}" for name in modules)
    in_python(f"""
import torch, torch.distributed
import megatron.core.parallel_state, megatron.core.models.gpt.gpt_model  # what these two change is not ours

places = (torch, torch.cuda, torch.Tensor, torch.distributed, torch.nn.functional)
def snapshot():
    return {{(place.__name__, name): id(value) for place in places for name, value in vars(place).items()}}
before = snapshot()
def changed():
    after = snapshot()
    return sorted(name for name in before if after.get(name) != before[name])

{imports}
assert changed() == [], changed()
assert torch.overrides._len_torch_function_stack() == 0
assert torch.ones(1).type() == "torch.FloatTensor"
if not torch.cuda.is_available():
    try:
        torch.ones(1, device="cuda")
    except (RuntimeError, AssertionError):
        pass
    else:
        raise AssertionError("a cuda tensor without a GPU")

megatron_ultralong.engine.cpu.activate()  # and all of the above would have seen it
assert ("torch.cuda", "current_device") in changed()
assert torch.overrides._len_torch_function_stack() == 1
""")


CONFIGS = sorted({*(ROOT / "examples").rglob("*.toml")} - {ROOT / "examples/ablations/arms.toml"})  # a plan of runs


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_example_configurations_load_strictly(path):
    load_config(path)


def test_tools_say_what_they_do():
    tools = [str(path) for path in sorted((ROOT / "tools").glob("[a-z]*.py"))]
    in_python(f"""
import contextlib, io, runpy, sys
for tool in {tools!r}:
    sys.argv = [tool, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        try:
            runpy.run_path(tool, run_name="__main__")
        except SystemExit as stopped:
            assert stopped.code == 0, tool
    assert "usage:" in shown.getvalue(), tool
""")


def test_the_version_is_the_packages():
    assert importlib.metadata.version("megatron-ultralong") == megatron_ultralong.__version__
