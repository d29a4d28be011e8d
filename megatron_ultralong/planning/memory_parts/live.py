"""A running sum of bytes and the most it was: the formulas of layers take and drop tensors in the order of the code."""

from __future__ import annotations


class Live:
    """Bytes that exist.

    Attributes:
        now: at present.
        top: at most so far.
        at: what was being done when `top` was reached.
        with_scratch: at most so far, kernels' scratch space included.
        kept: what earlier forward passes left, as the caller says, and `kept_at` as it was when `top` was reached.
        doing: what is being done, as the caller says.
    """

    __slots__ = ("at", "doing", "kept", "kept_at", "now", "top", "with_scratch")

    def __init__(self) -> None:
        self.now = self.top = self.with_scratch = self.kept = self.kept_at = 0
        self.at = self.doing = ""

    def take(self, size: int) -> None:
        """Make tensors of so many bytes."""
        self.now = now = self.now + size
        if now > self.top:
            self.top, self.at, self.kept_at = now, self.doing, self.kept

    def drop(self, size: int) -> None:
        """Free so many bytes."""
        self.now -= size

    def brief(self, size: int) -> None:
        """Make tensors and free them at once."""
        self.take(size)
        self.now -= size

    def scratch(self, size: int) -> None:
        """Space that a kernel asks for while it runs, beyond tensors."""
        self.with_scratch = max(self.with_scratch, self.now + size)
