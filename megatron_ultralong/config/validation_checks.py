"""What [validation] measures, by name, and whether it can: arithmetic over the configuration and config.json alone.

A bucket holds the labels that are predicted from so many tokens of context, "0-4096" from 1 to 4,096 of them: with
document masks that is a document's own. The first of the default buckets is short context, the next the rest of what
the model could before it was extended, the last what lies beyond.
"""

from __future__ import annotations

import collections
import difflib
import itertools
from collections.abc import Iterator
from typing import Any

from megatron_ultralong.config.sections import RunConfig
from megatron_ultralong.rope import config_json

_SHORT = 4096
_AT_LEAST_ZERO = ("interval", "samples", "warn", "patience")
_AT_LEAST_ONE = ("needle_depths", "needle_keys")


def source_names(config: RunConfig) -> list[str]:
    """What each validation source is called: its folder, with as many folders above it as tell all of them apart."""
    parts = [source.index.resolve().parts for source in config.validation.sources]
    depth = 1
    while len({each[-depth:] for each in parts}) < len({*parts}):
        depth += 1
    return [".".join(each[-depth:]) for each in parts]


def bucket_bounds(config: RunConfig, hf_config: dict[str, Any]) -> tuple[int, ...]:
    """Tokens of context that end each bucket, ascending; the last is data.sequence_length."""
    length = config.data.sequence_length
    base = config_json.read(hf_config, config.rope.original_length).length
    inner = config.validation.bounds or {base, *([_SHORT] if base > _SHORT else [])}
    return (*sorted(bound for bound in inner if bound < length), length)


def bucket_names(bounds: tuple[int, ...]) -> list[str]:
    """Of each bucket: more than the first number of tokens of context, up to the second."""
    return [f"{low}-{high}" for low, high in itertools.pairwise((0, *bounds))]


def metric_names(config: RunConfig, hf_config: dict[str, Any]) -> list[str]:
    """Every metric of a validation, in the order in which they are reported."""
    buckets = bucket_names(bucket_bounds(config, hf_config))
    names = []
    for source in source_names(config):
        for kind in ("loss", "perplexity"):
            names.append(f"{kind}/{source}")
            names += [f"{kind}/{source}/{bucket}" for bucket in buckets] if len(buckets) > 1 else []
    for length in config.validation.needles:
        names += [f"needles/{length}", f"needle_loss/{length}"]
    return names


def higher_is_better(metric: str) -> bool:
    """Whether a metric is a share of what was right."""
    return metric.startswith("needles/")


def validation_problems(config: RunConfig, hf_config: dict[str, Any]) -> Iterator[str]:
    """Numbers out of range, and options that mean nothing together."""
    section = config.validation
    for names, least in ((_AT_LEAST_ZERO, 0), (_AT_LEAST_ONE, 1)):
        for name in names:
            if getattr(section, name) < least:
                yield f"validation.{name} is {getattr(section, name)}; give {least} or more."
    if not section.sources:
        given = [
            name for name in ("interval", "at_start", "needles", "keep_best", "patience") if getattr(section, name)
        ]
        if given:
            yield f"validation.{given[0]} is given, but validation.sources is not; give the held-out packed indexes."
        return
    yield from _sources(config)
    yield from _lengths(config)
    yield from _best(config, hf_config)


def _sources(config: RunConfig) -> Iterator[str]:
    """Weights, which say nothing here, and indexes that are listed twice."""
    counts = collections.Counter(source.index.resolve() for source in config.validation.sources)
    for place, source in enumerate(config.validation.sources):
        if source.weight != 1.0:
            yield f"validation.sources.{place}.weight is {source.weight}, but sources are reported apart; remove it."
    for folder, count in counts.items():
        if count > 1:
            yield f"validation.sources has {folder} {count} times; list it once."


def _lengths(config: RunConfig) -> Iterator[str]:
    """Buckets and needles that do not lie within a sample."""
    section, length = config.validation, config.data.sequence_length
    if any(low >= high for low, high in itertools.pairwise((0, *section.bounds))):
        yield f"validation.bounds is {list(section.bounds)}; give tokens of context above 0, each more than the last."
    elif section.bounds and section.bounds[-1] >= length:
        yield (
            f"validation.bounds is {list(section.bounds)}, but the last bucket ends with data.sequence_length {length} "
            "anyway; give less."
        )
    for tokens in section.needles:
        if not 0 < tokens <= length:
            yield f"validation.needles has {tokens}; give lengths of at most data.sequence_length {length}."
    if len({*section.needles}) < len(section.needles):
        yield f"validation.needles is {list(section.needles)}; give each length once."


def _best(config: RunConfig, hf_config: dict[str, Any]) -> Iterator[str]:
    """A metric that does not exist, or a checkpoint that cannot be kept."""
    section = config.validation
    if section.patience and not section.keep_best:
        yield (
            f"validation.patience is {section.patience}, but validation.keep_best does not say which metric has to "
            "improve; give one."
        )
    if not section.keep_best:
        return
    known = metric_names(config, hf_config)
    if section.keep_best not in known:
        nearest = difflib.get_close_matches(section.keep_best, known, n=1)
        guess = f"the nearest is {nearest[0]}" if nearest else f"known: {', '.join(known)}"
        yield f'validation.keep_best is "{section.keep_best}", which is not measured; {guess}.'
    if config.checkpoint.save is None:
        yield "validation.keep_best is given, but checkpoint.save is not; give a folder for the checkpoints."
    if not section.interval:
        yield (
            "validation.keep_best is given with validation.interval 0, which validates the last step alone; give "
            "the steps between validations."
        )
