"""A model in Hugging Face format straight into megatron-core's sharded parameters: no checkpoint is written between.

Each rank of a data- and context-parallel group reads an even part of what the group holds in copies, by rows and a
few megabytes at a time, and the group exchanges the parts in place (`checkpoint.shares`), as when a checkpoint is
loaded. Where columns are split over tensor-parallel ranks, each reads whole rows and keeps its columns.
"""

from __future__ import annotations

from typing import Any

import torch

from megatron_ultralong.checkpoint import shares
from megatron_ultralong.checkpoint.loading import weight_copies
from megatron_ultralong.convert.formats.hf_folder import HfFolder
from megatron_ultralong.convert.formats.row_stream import cut
from megatron_ultralong.convert.parameter_mapping import Table
from megatron_ultralong.engine import mcore
from megatron_ultralong.families.rules import Rule
from megatron_ultralong.progress import Progress


@torch.no_grad()
def load_hf_weights(model: torch.nn.Module, source: HfFolder) -> None:
    """Fill this rank's part of a model with a folder's weights, in the model's dtype.

    Every rank calls it. Rows of the vocabulary that are padding become zeros.

    Raises:
        UserError: tensors are missing, left over or of another shape than config.json says, or a file cannot be read.
    """
    table = Table.from_hf(source.config)
    table.check_hf(source.shapes, str(source.path))
    rules = {rule.megatron: rule for rule in table.rules}
    copies = weight_copies(model)
    group = mcore.parallel_state.get_data_parallel_group(with_context_parallel=True)
    boxes = shares.own_boxes(copies, group.rank(), group.size())
    progress = Progress(f"loading {source.path.name}", len(boxes), "parts")
    for box in boxes:
        _fill(box, rules[box.key], table, source)
        progress.advance()
    shares.exchange(copies, group)


def _fill(box: Any, rule: Rule, table: Table, source: HfFolder) -> None:
    """One box of one megatron-core tensor, from the Hugging Face tensors that its rows come from."""
    layer = box.global_offset[0] if rule.layered else 0
    offset = box.global_offset[1:] if rule.layered else box.global_offset
    shape = box.local_shape[1:] if rule.layered else box.local_shape
    target = box.data.view(shape)
    begin, end = offset[0], offset[0] + shape[0]
    columns = slice(offset[1], offset[1] + shape[1]) if len(shape) > 1 else slice(0, 0)
    names, filled = rule.names(layer), 0
    for span in rule.spans(table.dimensions):
        first, last = max(begin, span.fused), min(end, span.fused + span.rows)
        if first >= last:
            continue
        name, moved = names[span.part], span.start - span.fused
        row_bytes = source.dtypes[name].itemsize * (source.shapes[name][1] if len(shape) > 1 else 1)
        for start, stop in cut(last - first, row_bytes):
            rows = source.rows(name, first + start + moved, first + stop + moved)
            target[first + start - begin : first + stop - begin] = rows[:, columns] if len(shape) > 1 else rows
            filled += stop - start
    target[filled:] = 0  # rows come in order, so what is left is behind the vocabulary
