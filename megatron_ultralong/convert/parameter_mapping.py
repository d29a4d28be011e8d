"""A family's rules applied to one model: every tensor's name and shape on both sides, and what contradicts them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

from megatron_ultralong.errors import UserError, listing
from megatron_ultralong.families.defaults import completed
from megatron_ultralong.families.rules import Dimensions, Rule, Shape
from megatron_ultralong.families.tables import EMBEDDING, OUTPUT, rules_of

_DERIVED = ".rotary_emb.inv_freq"  # a buffer that old checkpoints carry; recomputed from config.json
_MODEL_PREFIXES = ("embedding.", "decoder.", "output_layer.")


@dataclasses.dataclass(frozen=True)
class Table:
    """A family's rules for one model: what its tensors are called and what shapes they have on both sides."""

    rules: tuple[Rule, ...]
    dimensions: Dimensions
    tied: bool

    @classmethod
    def from_hf(cls, config: dict[str, Any]) -> Table:
        """The table of config.json's architecture.

        Raises:
            UserError: an architecture that no table describes, an entry that asks for what is not computed here, or
                a bad size.
        """
        config = completed(config)
        return cls(rules_of(config), Dimensions.from_hf(config), bool(config.get("tie_word_embeddings", False)))

    def pieces(self) -> Iterator[tuple[Rule, int]]:
        """Every (rule, layer) of the model, a layer's together, in the order of the forward pass.

        Rules that are not of a layer have layer 0.
        """
        flat = [rule for rule in self.rules if not rule.layered]
        yield from ((rule, 0) for rule in flat if rule == EMBEDDING)
        for layer in range(self.dimensions.layers):
            yield from ((rule, layer) for rule in self.rules if rule.layered)
        yield from ((rule, 0) for rule in flat if rule != EMBEDDING)

    def groups(self) -> list[list[tuple[Rule, int]]]:
        """The pieces, a file's together: the embedding, each layer, and the rest."""
        groups: dict[tuple[bool, int, bool], list[tuple[Rule, int]]] = {}
        for rule, layer in self.pieces():
            groups.setdefault((rule.layered, layer, rule == EMBEDDING), []).append((rule, layer))
        return list(groups.values())

    @functools.cached_property
    def hf_shapes(self) -> dict[str, Shape]:
        """Every Hugging Face tensor's name and shape, in the order of `pieces`."""
        return {
            name: shape
            for rule, layer in self.pieces()
            for name, shape in zip(rule.names(layer), rule.shapes(self.dimensions), strict=True)
        }

    @functools.cached_property
    def megatron_shapes(self) -> dict[str, Shape]:
        """Every megatron-core tensor's key and global shape, the layer axis first where there is one."""
        depth = (self.dimensions.layers,)
        return {
            rule.megatron: (depth if rule.layered else ()) + rule.fused_shape(self.dimensions) for rule in self.rules
        }

    def check_hf(self, shapes: dict[str, Shape], where: str) -> None:
        """Compare the tensors of a Hugging Face folder with the table.

        Args:
            shapes: name -> shape of every tensor there.
            where: the folder, for messages.

        Raises:
            UserError: tensors missing, left over, or of another shape than config.json says.
        """
        expected = self.hf_shapes
        spare = {OUTPUT.hf[0]} if self.tied else set()
        missing = [name for name in expected if name not in shapes]
        extra = [name for name in shapes if name not in expected and not name.endswith(_DERIVED) and name not in spare]
        if missing:
            raise UserError(
                f"{where}: tensors that config.json asks for are missing: {listing(missing)}; "
                "mend config.json or add the weights."
            )
        if extra:
            raise UserError(
                f"{where}: tensors that no rule maps are left over: {listing(extra)}; config.json describes another "
                "model, or the family's table in families/tables.py lacks them."
            )
        self._check_shapes(expected, shapes, where)

    def check_megatron(self, shapes: dict[str, Shape], where: str) -> None:
        """Compare the model tensors of a Megatron checkpoint with the table; optimizer state is let pass.

        Vocabulary rows beyond config.json's vocab_size are padding, and let pass too.

        Raises:
            UserError: tensors missing, left over, or of another shape than the stored config says.
        """
        expected = self.megatron_shapes
        missing = [key for key in expected if key not in shapes]
        extra = [key for key in shapes if key.startswith(_MODEL_PREFIXES) and key not in expected]
        if missing or extra:
            what = f"lacks {listing(missing)}" if missing else f"has {listing(extra)}, which no rule maps"
            raise UserError(f"{where}: the checkpoint {what}; its ultralong.json describes another model.")
        padded = {rule.megatron for rule in self.rules if rule.vocabulary}
        unpadded = {
            key: (min(shapes[key][0], expected[key][0]), *shapes[key][1:]) if key in padded else shapes[key]
            for key in expected
        }
        self._check_shapes(expected, unpadded, where)

    def _check_shapes(self, expected: dict[str, Shape], actual: dict[str, Shape], where: str) -> None:
        wrong = [name for name in expected if tuple(actual[name]) != expected[name]]
        if wrong:
            name = wrong[0]
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            raise UserError(
                f"{where}: {name} has shape {list(actual[name])}, but config.json makes it {list(expected[name])}"
                f"{more}; mend config.json or take the weights that belong to it."
            )
