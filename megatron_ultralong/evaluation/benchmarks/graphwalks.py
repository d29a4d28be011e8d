"""GraphWalks: a graph that fills the context, and the nodes at one depth of a search from a node, or a node's parents.

Graphs are generated here, at any length, or the rows of OpenAI's dataset openai/graphwalks are asked as they are. Nodes
are random hexadecimal names; every node has two edges that leave it on average, none leads to itself and none is there
twice. An answer's last line must say "Final Answer: [node, node]"; the score is the F1 of the sets.

The dataset's page prints a grader that, taken at its word, leaves "Final Answer: [" on the first node, so that no
answer is ever whole, and gives 1 where no node is right. Ours is what its text says, as lm-evaluation-harness has it
too: all nodes, and 1 only where both sets are empty. Newlines at the end make no last line.

Generating a sample is one encoding of its edges and one of the whole: linear in the length.
"""

from __future__ import annotations

import dataclasses
import functools
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_ultralong.data.tokenizer.chat import ChatTokenizer
from megatron_ultralong.evaluation.benchmarks import prediction_files
from megatron_ultralong.evaluation.benchmarks.benchmark_rows import Row
from megatron_ultralong.evaluation.benchmarks.counting import counter_of
from megatron_ultralong.evaluation.benchmarks.prompt_templates import OWN, Template
from megatron_ultralong.evaluation.benchmarks.whole_prompts import make_whole_samples
from megatron_ultralong.evaluation.registry import MakeOptions, Task
from megatron_ultralong.evaluation.samples import Sample, TooShortError

BUDGET = 1024
MOST = 24
"""Nodes of an answer at most."""
FEWEST = 16
"""Edges of a graph at least."""
DEPTHS = 4
DEGREE = 2
"""Edges that leave a node, on average."""
FILES = ("*.parquet", "*.jsonl")
OPERATIONS = ("bfs", "parents")

Edge = tuple[str, str]

_ANSWER = re.compile(r"Final Answer: ?\[(.*)\]")
_EXPLAINED = """This is a directed graph, an edge a line: "a1 -> b2" leads from a1 to b2.

An example with four edges:
c3 -> 0d
a1 -> b2
a1 -> c3
b2 -> c3
Question: Which nodes are reached from a1 in 2 steps, and in no fewer?
Final Answer: [0d]
Question: Which nodes have an edge that leads to c3?
Final Answer: [a1, b2]

The graph:
{context}
Question: {question}
"""
_TEMPLATE = Template(
    base=_EXPLAINED,
    lead="Final Answer:",
    chat=_EXPLAINED + "Think as you like, and let your last line be: Final Answer: [the nodes, with commas between]",
)
_QUESTIONS = {
    "bfs": "Which nodes are reached from {node} in {depth} steps, and in no fewer?",
    "parents": "Which nodes have an edge that leads to {node}?",
}


def answered(answer: str) -> set[str] | None:
    """The nodes that an answer's last line names; None: it names none in the form asked for."""
    found = _ANSWER.search(answer.rstrip("\n").rpartition("\n")[2])
    return {node.strip() for node in found.group(1).strip("[]").split(",")} - {""} if found else None


def score(prediction: str, sample: Sample) -> float:
    """F1 of the sets; in base form, where the line's beginning is given, the first line is the last."""
    if sample.answer_prefix:
        prediction = sample.answer_prefix + prediction.partition("\n")[0]
    named, wanted = answered(prediction), set(sample.outputs)
    if named is None:
        return 0.0
    same = len(named & wanted)
    return 2 * same / (len(named) + len(wanted)) if named or wanted else 1.0


def random_edges(rng: random.Random, count: int) -> list[Edge]:
    """`count` different edges in random order among count / DEGREE nodes, at least three."""
    names: dict[str, None] = {}
    while len(names) < max(count // DEGREE, 3):
        names[f"{rng.getrandbits(40):010x}"] = None
    nodes, edges = list(names), dict[Edge, None]()
    while len(edges) < min(count, len(nodes) * (len(nodes) - 1)):
        first, last = rng.choice(nodes), rng.choice(nodes)
        if first != last:
            edges[first, last] = None
    return list(edges)


def nodes_at(edges: Sequence[Edge], start: str, depths: int) -> list[list[str]]:
    """The nodes whose shortest way from `start` has 1, 2 ... `depths` edges."""
    after = _grouped(edges)
    seen, front, found = {start}, [start], []
    for _ in range(depths):
        front = list(dict.fromkeys(b for a in front for b in after.get(a, ()) if b not in seen))
        seen.update(front)
        found.append(front)
    return found


def _grouped(edges: Sequence[Edge]) -> dict[str, list[str]]:
    after: dict[str, list[str]] = {}
    for first, last in edges:
        after.setdefault(first, []).append(last)
    return after


def _question(rng: random.Random, edges: Sequence[Edge], operation: str) -> tuple[str, list[str]]:
    """A question about a graph that has between one and MOST nodes as its answer."""
    while True:
        first, last = rng.choice(edges)
        if operation == "parents":
            found = [a for a, b in edges if b == last]
            if len(found) <= MOST:
                return _QUESTIONS[operation].replace("{node}", last), found
            continue
        levels = [(depth, nodes) for depth, nodes in enumerate(nodes_at(edges, first, DEPTHS), start=1)]
        depth, found = rng.choice([level for level in levels if level[1]])
        if len(found) <= MOST:
            return _QUESTIONS[operation].replace("{node}", first).replace("{depth}", str(depth)), found


def _generated(task: str, options: MakeOptions, length: int, index: int) -> Sample:
    """One sample, within an edge's tokens of its length."""
    rng = random.Random(f"{task} {options.seed} {length} {index}")
    operation = task.partition("/")[2]
    empty = Sample(
        task=task, index=index, input="", outputs=(), length=length, max_new_tokens=BUDGET, prompt_tokens=0,
        form=options.form, extra={"prompts": OWN},
    )  # fmt: skip

    def asked(edges: Sequence[Edge]) -> Sample:
        question, nodes = _question(rng, edges, operation)
        fields = {"context": "".join(map(_line, edges)), "question": question}
        sample = dataclasses.replace(_TEMPLATE.asked(empty, options.form, fields), outputs=tuple(nodes))
        extra = sample.extra | {"question": question, "edges": len(edges)}
        return dataclasses.replace(sample, prompt_tokens=counter_of(options.tokenizer).prompt(sample), extra=extra)

    few = random_edges(rng, FEWEST)
    least = asked(few).prompt_tokens
    each = len(options.tokenizer.encode("".join(map(_line, few)))) / len(few)
    room = length - BUDGET - least
    if room < 0:
        raise TooShortError(
            f"{task}: a length of {length} tokens is too short: a graph of {len(few)} edges takes {least} and the "
            f"answer may take {BUDGET}; ask for at least {least + BUDGET}."
        )
    edges = random_edges(rng, int(1.05 * room / each) + len(few) + 16)
    kept = _fitting(edges, options.tokenizer, room + each * len(few))
    while True:
        sample = asked(edges[:kept])
        excess = sample.prompt_tokens + BUDGET - length
        if excess <= 0:
            return sample
        kept -= max(1, int(excess / each))


def _line(edge: Edge) -> str:
    return f"{edge[0]} -> {edge[1]}\n"


def _fitting(edges: Sequence[Edge], tokenizer: ChatTokenizer, room: float) -> int:
    """How many edges take at most `room` tokens."""
    text = "".join(map(_line, edges))
    spans = tokenizer.offsets(text)
    end = spans[min(int(room), len(spans)) - 1, 1]
    return text.count("\n", 0, int(end))


def _reference(row: Row, _: Path, *, operation: str) -> Sample:
    nodes = row.texts("answer_nodes", "answer", empty=True)
    return prediction_files.reference(f"graphwalks/{operation}", row, nodes, BUDGET, parts=[])


def make(options: MakeOptions, operation: str) -> Iterator[Sample]:
    """Samples of generated graphs, or of the dataset's rows where `options.data` is given."""
    task = f"graphwalks/{operation}"

    def build(row: Row, file: Path) -> Sample | None:
        if str(row.values.get("problem_type", operation)).lower() != operation:
            return None
        text = row.text("prompt")
        sample = _reference(row, file, operation=operation)
        return dataclasses.replace(sample, input=text, form=options.form)

    if options.data is not None:
        return make_whole_samples(task, options, FILES, build, "openai/graphwalks' rows")
    wanted = options.only if options.only is not None else range(options.count)
    return (_generated(task, options, length, index) for length in options.lengths for index in wanted)


def tasks() -> list[Task]:
    """A breadth-first search's nodes at a depth, and a node's parents."""
    return [_task(operation) for operation in OPERATIONS]


def _task(operation: str) -> Task:
    name, to_reference = f"graphwalks/{operation}", functools.partial(_reference, operation=operation)
    return Task(
        name=name,
        budget=BUDGET,
        score=score,
        make=functools.partial(make, operation=operation),
        read=lambda path: prediction_files.read_predictions(name, path, FILES, to_reference),
        references=lambda path: prediction_files.read_references(path, FILES, to_reference),
        split=True,
    )
