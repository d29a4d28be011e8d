"""How a model's layers are spread over pipeline stages: alike, or with fewer on the first or the last.

The first stage also holds the embedding, the last one the head and its loss. Pure arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator

from megatron_ultralong.config.sections import ParallelConfig


def layers_of_stages(parallel: ParallelConfig, layers: int) -> list[int]:
    """Layers of each stage, as megatron-core gives them; `stage_problems` says whether that is possible."""
    ends = parallel.first_stage_layers, parallel.last_stage_layers
    others = parallel.pipeline - sum(end > 0 for end in ends)
    each = (layers - sum(ends)) // others if others else 0
    found = [each] * parallel.pipeline
    if ends[0]:
        found[0] = ends[0]
    if ends[1]:
        found[-1] = ends[1]
    return found


def stage_problems(parallel: ParallelConfig, layers: int) -> Iterator[str]:
    """Why the layers cannot be spread so, in a sentence with field, value and mend."""
    first, last = parallel.first_stage_layers, parallel.last_stage_layers
    if (first or last) and parallel.pipeline == 1:
        name = "first_stage_layers" if first else "last_stage_layers"
        yield f"parallel.{name} is {first or last} with parallel.pipeline 1, whose one stage has all; remove it."
        return
    found = layers_of_stages(parallel, layers)
    if not (first or last) and layers % parallel.pipeline:
        yield (
            f"parallel.pipeline is {parallel.pipeline}, which does not divide the model's {layers} layers; give a "
            f"divisor of {layers}, or set parallel.first_stage_layers or parallel.last_stage_layers."
        )
    elif sum(found) != layers or min(found) < 1:
        yield (
            f"parallel.first_stage_layers {first} and parallel.last_stage_layers {last} leave "
            f"{layers - first - last} of the model's {layers} layers for the other stages of parallel.pipeline "
            f"{parallel.pipeline}, which must share them evenly; change one of these."
        )
    elif parallel.recompute_layers > max(found):
        yield (
            f"parallel.recompute_layers is {parallel.recompute_layers}, but a pipeline stage has {max(found)}; give at "
            "most that, or 0 for all."
        )
