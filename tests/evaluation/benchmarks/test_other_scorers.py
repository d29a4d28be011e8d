"""LongBench v2, BABILong, MRCR and GraphWalks by their definitions, the source beside each table."""

import difflib

import pytest

from megatron_ultralong.evaluation.benchmarks import babilong, graphwalks, longbench_v2, mrcr
from megatron_ultralong.evaluation.registry import find_task
from tests.evaluation.benchmarks.test_official_scorers import sample


@pytest.mark.parametrize(
    ("answer", "letter"),
    [  # THUDM/LongBench, pred.py:58-68 at 2e00731
        ("", None),
        ("B", None),
        ("The correct answer is (B)", "B"),
        ("The correct answer is B.", "B"),
        ("**The correct answer is (B)**", "B"),
        ("The correct answer is *(B)*", "B"),
        ("the correct answer is (B)", None),
        ("The correct answer is (B", None),
        ("The correct answer is: B", None),
        ("The correct answer is (E)", None),
        ("The correct answer is Apples", "A"),
        ("The correct answer is C or (B). The correct answer is (D)", "D"),  # brackets first
        ("The correct answer is (A). The correct answer is (B)", "A"),
        ("The correct\nanswer is (A)", None),
    ],
)
def test_longbench_v2(answer, letter):
    assert longbench_v2.letter(answer) == letter


@pytest.mark.parametrize(
    ("task", "target", "question", "answer", "score"),
    [  # booydar/babilong, babilong/metrics.py:27-67 at 7a6efee
        ("qa1", "kitchen", "Where is John?", "", 0),
        ("qa1", "kitchen", "Where is John?", "John is in the Kitchen.", 1),
        ("qa1", "Kitchen", "Where is John?", "kitchen", 1),
        ("qa1", "kitchen", "Where is John?", "kitchen or garden", 0),
        ("qa1", "kitchen", "Where is John?", "kitchen. garden", 1),  # the first sentence
        ("qa1", "kitchen", "Where is John?", ". kitchen", 0),
        ("qa1", "kitchen", "Where is John?", "kitchen <example> garden", 1),
        ("qa1", "kitchen", "Where is John?", "kitchen <CONTEXT> garden", 1),
        ("qa1", "kitchen", "Where is John?", "kitchen Question: garden?", 0),  # lower-cased before that word is sought
        ("qa3", "garden", "Where was it before the kitchen?", "before the kitchen the garden", 1),
        ("qa3", "kitchen", "Where was it before the kitchen?", "kitchen", 0),  # named in the question
        ("qa5", "Fred", "Who gave it to Bill?", "Fred gave it to Bill", 1),
        ("qa6", "no", "Is John there?", "no", 1),
        ("qa6", "yes", "Is John there?", "yes, I do not know", 0),  # "no" in "not"
        ("qa7", "one", "How many?", "one", 1),
        ("qa7", "none", "How many?", "none", 0),  # "one" in "none": never right
        ("qa8", "apple,milk", "What?", "milk and apple", 1),
        ("qa8", "apple,milk", "What?", "apple", 0),
        ("qa8", "apple,milk", "What?", "apple, milk and the football", 0),
        ("qa8", "apple, milk", "What?", "apple, milk", 0),  # a space in the target is part of it
        ("qa8", "milk", "What?", "apple, milk", 0),
        ("qa19", "e,s", "How?", "e,s", 1),
        ("qa19", "e,s", "How?", "e, s", 0),
        ("qa20", "tired", "Why did he go to the bedroom?", "he was tired, to the bedroom", 1),
    ],
)
def test_babilong(task, target, question, answer, score):
    assert babilong.score(answer, sample([target], question=question), babilong.LABELS[task]) == score


@pytest.mark.parametrize("task", sorted(set(babilong.LABELS) - {"qa7", "qa8"}))
def test_a_guesser_of_labels_scores_its_chance(task):
    labels = babilong.LABELS[task]
    right = [babilong.score(guess, sample([target], question=""), labels) for guess in labels for target in labels]
    assert sum(right) / len(right) == pytest.approx(find_task(f"babilong/{task}").chance)


@pytest.mark.parametrize(
    ("answer", "score"),
    [  # dataset card of openai/mrcr, the function `grade`
        ("", 0),
        ("a poem", 0),
        (" Xa poem", 0),  # a space before the word
        ("x" + "a poem", 0),
        ("Xa poem", 1),
        ("X", 0),
        ("Xa pom", 2 * 5 / 11),
        ("XXa poem", 2 * 6 / 13),  # the word is taken off once
    ],
)
def test_mrcr(answer, score):
    assert mrcr.score(answer, sample(["Xa poem"], random_string_to_prepend="X")) == pytest.approx(score)


def test_mrcr_compares_the_answer_with_the_reference_in_that_order():
    """SequenceMatcher leaves out frequent characters of its second text, if it has 200 or more."""
    long, short = "abcab" * 60, "cab" * 20
    got = mrcr.score("X" + short, sample(["X" + long], random_string_to_prepend="X"))
    assert got == difflib.SequenceMatcher(None, short, long).ratio()
    assert got != difflib.SequenceMatcher(None, long, short).ratio()


@pytest.mark.parametrize(
    ("answer", "nodes", "score"),
    [  # dataset card of openai/graphwalks; lm_eval/tasks/graphwalks/utils.py
        ("", ["a"], 0),
        ("Final Answer: [a, b]", ["a", "b"], 1),
        ("Final Answer:[b,a]", ["a", "b"], 1),
        ("So be it.\nFinal Answer: [a, b]\n", ["a", "b"], 1),
        ("Final Answer: [a, b]\nThat is all.", ["a", "b"], 0),
        ("Final Answer: a, b", ["a", "b"], 0),
        ("final answer: [a, b]", ["a", "b"], 0),
        ("Final Answer: [a]", ["a", "b"], 2 / 3),
        ("Final Answer: [a, a, c]", ["a", "b"], 0.5),
        ("Final Answer: [c]", ["a", "b"], 0),
        ("Final Answer: []", [], 1),
        ("Final Answer: []", ["a"], 0),
        ("Final Answer: [a]", [], 0),
        ("", [], 0),
        ("My Final Answer: [a] and Final Answer: [b]", ["b"], 0),  # from the first to the last bracket
    ],
)
def test_graphwalks(answer, nodes, score):
    assert graphwalks.score(answer, sample(nodes)) == pytest.approx(score)


def test_graphs_have_the_edges_asked_for(rng):
    for count in (3, 6, 40, 400):
        edges = graphwalks.random_edges(rng, count)
        assert len(edges) == len(set(edges)) == count
        assert all(first != last for first, last in edges)
    assert len({node for edge in edges for node in edge}) <= 200
