"""Whether a chat template never looks into what is said, told from its syntax tree."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from jinja2 import nodes

from megatron_ultralong.data.tokenizer.chat_template import syntax_tree

_PRINTING_FILTERS = frozenset(
    "trim tojson string default d list first last select reject selectattr rejectattr map items dictsort join safe "
    "length count".split()
)
_PRINTING_CALLS = frozenset("raise_exception strftime_now namespace range dict joiner cycler loop caller".split())
_PRINTING_METHODS = frozenset("strip lstrip rstrip items keys values get append cycle".split())
_KEYS = frozenset("role content name tool_calls tool_call_id function_call reasoning_content thinking function".split())


@functools.cache
def is_opaque(template: str) -> bool:
    """Whether a template never looks into a string: it prints and strips contents, and asks whether there is one.

    What is not known to be harmless counts as looking: other filters, methods and slices; searching with `in` for
    anything but a key or a role; comparing contents with text, or taking their length.
    """
    tree = syntax_tree(template)
    macros = frozenset(macro.name for macro in tree.find_all(nodes.Macro))
    return not any(_looks(node, macros) for node in _walk(tree))


def _walk(node: nodes.Node) -> Iterator[nodes.Node]:
    yield node
    for child in node.iter_child_nodes():
        yield from _walk(child)


def _looks(node: nodes.Node, macros: frozenset[str]) -> bool:
    if isinstance(node, nodes.Filter):
        harmful = node.name in ("length", "count") and node.node is not None and _mentions_content(node.node)
        return node.name not in _PRINTING_FILTERS or (node.name == "trim" and bool(node.args)) or harmful
    if isinstance(node, nodes.Call):
        if isinstance(node.node, nodes.Name):
            return node.node.name not in _PRINTING_CALLS | macros
        stripped = isinstance(node.node, nodes.Getattr) and node.node.attr.endswith("strip") and bool(node.args)
        return not isinstance(node.node, nodes.Getattr) or node.node.attr not in _PRINTING_METHODS or stripped
    if isinstance(node, nodes.Getitem) and (isinstance(node.arg, nodes.Slice) or isinstance(node.arg, nodes.Const)):
        numbered = isinstance(node.arg, nodes.Slice) or isinstance(node.arg.value, int)
        return numbered and _mentions_content(node.node)
    if isinstance(node, nodes.For):
        return _mentions_content(node.iter)
    if isinstance(node, nodes.Compare):
        return any(_looks_for(node.expr, operand) for operand in node.ops)
    return False


def _looks_for(expression: nodes.Expr, operand: nodes.Operand) -> bool:
    if operand.op in ("in", "notin"):
        listed = isinstance(operand.expr, nodes.List | nodes.Tuple)
        key = isinstance(expression, nodes.Const) and expression.value in _KEYS
        return (listed and _mentions_content(expression)) or not (listed or key)
    sides = (expression, operand.expr)
    words = any(isinstance(side, nodes.Const) and side.value not in (None, "", True, False) for side in sides)
    return words and any(_mentions_content(side) for side in sides)


def _mentions_content(node: nodes.Node) -> bool:
    return any(
        "content" in (getattr(each, "attr", None) or getattr(each, "name", None) or "")
        or (isinstance(each, nodes.Const) and each.value == "content")
        for each in _walk(node)
    )
