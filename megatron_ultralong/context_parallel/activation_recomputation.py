"""Selective activation recomputation: all of a layer but its attention, whose output and log-sum-exp are kept.

Attention is nearly all of a long layer's work (at 1M tokens about 95 % in Llama-3.1-8B) and its output is one tensor
of the layer's size. So what is checkpointed keeps, a token and layer, its input (D values), the attention's output
(N H values) and log-sum-exp (N fp32 numbers); norms, projections, rotary and the MLP are computed again. The
gradients are the same bytes as without.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint

_Results = tuple[Tensor, Tensor]
_once: ContextVar[Callable[[Callable[[], _Results]], _Results] | None] = ContextVar("once", default=None)


def once(attend: Callable[[], _Results]) -> _Results:
    """`attend()`: output and log-sum-exp; or what it gave before, where a checkpointed stretch is computed again."""
    how = _once.get()
    return attend() if how is None else how(attend)


def checkpoint_all_but_attention(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """`function(*arguments, **keywords)`, to be computed again in backward without its attention.

    `function` must draw no random numbers, as in training without dropout.
    """
    results: list[_Results] = []
    return checkpoint(
        function,
        *arguments,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (Keep(results), _Recall(results)),
        **keywords,
    )


class Keep:
    """Within it, `once` attends and keeps what comes out."""

    def __init__(self, results: list[_Results]) -> None:
        self.results = results

    def answer(self, attend: Callable[[], _Results]) -> _Results:
        """What `once` gives."""
        out, lse = attend()
        self.results.append((out.detach(), lse.detach()))
        return out, lse

    def __enter__(self) -> None:
        self.token = _once.set(self.answer)

    def __exit__(self, *_: object) -> None:
        _once.reset(self.token)


class _Recall(Keep):
    """Within it, `once` answers with the kept results in their order; from the first each time it is entered."""

    def answer(self, attend: Callable[[], _Results]) -> _Results:
        out, lse = next(self.remaining)
        return out.detach(), lse.detach()  # new tensors: autograd marks the one that is returned

    def __enter__(self) -> None:
        self.remaining = iter(self.results)
        super().__enter__()
