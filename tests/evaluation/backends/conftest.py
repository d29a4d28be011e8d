"""Conversion's tiny models of each family."""

from tests.convert.conftest import build

__all__ = ["build"]
