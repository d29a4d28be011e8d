"""Perplexity over windows, and its intervals."""

import math

from megatron_ultralong.evaluation.report.gathering import gather
from megatron_ultralong.evaluation.report.perplexities import perplexities
from megatron_ultralong.evaluation.run_folder import read_run
from tests.evaluation.report.run_folders import window, write_run


def test_nats_over_tokens_of_all_windows(models):
    first, second = perplexities(models)["perplexity/by_position"]["base"]
    assert (first["from"], first["to"], first["tokens"], first["windows"]) == (0, 4096, 8190, 2)
    assert first["perplexity"] == round(math.exp((8190 + 8191) / 8190), 4)
    assert (second["perplexity"], second["low"], second["high"]) == (round(math.e, 4),) * 3


def test_windows_are_drawn_as_wholes(tmp_path):
    """Two windows of 1 and 3 nats a token: a resample has a mean of 1, 2 or 3, whatever the number of tokens."""
    windows = [window(0, 64, [(0, 64, 64.0, 64)]), window(1, 64, [(0, 64, 192.0, 64)])]
    run = read_run(write_run(tmp_path / "run", "m", [], windows=windows, skipped=[{"samples": 1}]))
    (row,) = perplexities(gather([(None, run)]))["perplexity/by_position"]["m"]
    wanted = [round(math.exp(nats), 4) for nats in (1, 2, 3)]
    assert [row["low"], row["perplexity"], row["high"]] == wanted
