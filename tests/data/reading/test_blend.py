import itertools
import json

import pytest

from megatron_ultralong.data.packing.index import PackOptions, write_packed_index
from megatron_ultralong.data.reading.blend import BlendedDataset, Position
from megatron_ultralong.data.reading.dataset import PackedDataset
from megatron_ultralong.errors import UserError


@pytest.fixture
def dataset(write_corpus, tmp_path):
    def dataset(samples, name, sequence_length=4):
        corpus = write_corpus([list(range(1, samples * sequence_length + 2))], name=name)
        write_packed_index(corpus, tmp_path / f"{name}-packed", PackOptions(sequence_length=sequence_length))
        return PackedDataset(tmp_path / f"{name}-packed")

    return dataset


def test_every_share_is_near_its_weight_at_every_sample(dataset):
    blend = BlendedDataset([dataset(5, "a"), dataset(7, "b"), dataset(3, "c")], [5, 3, 2], seed=1)
    drawn = [0, 0, 0]
    for k in range(200):
        drawn[blend.locate(k)[0]] += 1
        assert all(abs(have - share * (k + 1)) < 1 for have, share in zip(drawn, (0.5, 0.3, 0.2), strict=True))


def test_each_epoch_has_every_sample_once_in_another_order(dataset):
    blend = BlendedDataset([dataset(20, "a"), dataset(7, "b")], [3, 1], seed=1)
    drawn = [i for source, i in map(blend.locate, range(80)) if source == 0]
    epochs = [drawn[first : first + 20] for first in (0, 20, 40)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_run_may_begin_anywhere_and_go_back(dataset):
    sources = [dataset(20, "a"), dataset(7, "b")]
    straight = BlendedDataset(sources, [2, 1], seed=3)
    expected = {k: straight.locate(k) for k in range(9000)}
    for start in (8999, 4096, 4095, 0, 8192):
        resumed = BlendedDataset(sources, [2, 1], seed=3)
        assert resumed.locate(start) == expected[start]
        assert resumed.locate(5) == expected[5]
    assert {k: BlendedDataset(sources, [2, 1], seed=4).locate(k) for k in range(50)} != {
        k: expected[k] for k in range(50)
    }


def test_reading(dataset):
    source = dataset(3, "a")
    blend = BlendedDataset([source], [0.1], seed=1)
    assert blend.sequence_length == 4
    for k in range(6):
        i = blend.locate(k)[1]
        assert blend.read(k).tokens.tolist() == list(range(4 * i + 1, 4 * i + 5))
        assert blend.read(k, [(1, 2)]).labels.tolist() == [4 * i + 3]


@pytest.mark.parametrize(
    ("weights", "lengths", "sentence"),
    [
        ([], [], "0 sources with 0 weights"),
        ([1], [4, 4], "2 sources with 1 weights"),
        ([1, 0], [4, 4], "weight: 0 is no share"),
        ([1, 1], [4, 5], r"different lengths \[4, 5\]"),
    ],
)
def test_sources_that_cannot_be_blended(dataset, weights, lengths, sentence):
    sources = [dataset(2, f"s{i}", length) for i, length in enumerate(lengths)]
    with pytest.raises(UserError, match=sentence):
        BlendedDataset(sources, weights, seed=1)


def test_a_sample_before_the_first(dataset):
    with pytest.raises(IndexError):
        BlendedDataset([dataset(2, "a")], [1], seed=1).locate(-1)


def test_a_source_may_be_listed_once(dataset):
    source = dataset(2, "a")
    with pytest.raises(UserError, match=r"a-packed is the same packed index as .*a-packed; list it once"):
        BlendedDataset([source, source], [1, 1], seed=1)


def through_json(position):
    return Position.from_json(json.loads(json.dumps(position.to_json())))


@pytest.mark.parametrize("stops", [[1], [37], [4096], [5000, 5001], [10, 20, 30]])
def test_a_resumed_blend_goes_on_as_if_nothing_had_happened(dataset, stops):
    sources = [dataset(20, "a"), dataset(7, "b"), dataset(3, "c")]
    straight = BlendedDataset(sources, [5, 3, 2], seed=3)
    position = None
    for begin, end in itertools.pairwise([0, *stops, 6000]):
        resumed = BlendedDataset(sources, [5, 3, 2], seed=3, start=position)
        assert resumed.first == begin
        assert [resumed.locate(k) for k in range(begin, end)] == [straight.locate(k) for k in range(begin, end)]
        position = through_json(resumed.position(end))
        assert position == straight.position(end)


def test_new_weights_neither_repeat_nor_lose_a_sample(dataset):
    sources = {name: dataset(size, name) for name, size in (("a", 40), ("b", 30), ("c", 50), ("d", 10))}
    drawn = {name: [] for name in sources}
    position, k = None, 0
    stages = [
        ({"a": 1, "b": 1}, 33),
        ({"a": 1, "b": 9}, 41),  # other weights
        ({"b": 9, "a": 1}, 7),  # in another order
        ({"a": 2, "c": 1}, 30),  # one goes, one comes
        ({"d": 1, "c": 3, "b": 1, "a": 1}, 60),  # and comes back
    ]
    for weights, count in stages:
        blend = BlendedDataset([sources[name] for name in weights], list(weights.values()), 5, position)
        here = dict.fromkeys(weights, 0)
        for step in range(count):
            source, i = blend.locate(k)
            name = list(weights)[source]
            drawn[name].append(i)
            here[name] += 1
            k += 1
            if weights != stages[2][0]:  # which goes on with the shares of the stage before it
                assert all(abs(here[n] - (step + 1) * w / sum(weights.values())) < 1 for n, w in weights.items())
        position = through_json(blend.position(k))
    assert sum(map(len, drawn.values())) == k == position.samples
    assert {source.drawn for source in position.sources} == {len(rows) for rows in drawn.values()}
    for name, rows in drawn.items():
        size = len(sources[name])
        epochs = [rows[first : first + size] for first in range(0, len(rows), size)]
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs[:-1])
        assert len(set(epochs[-1])) == len(epochs[-1])


def test_an_index_packed_anew_is_refused_or_begun_by_its_word(dataset, tmp_path):
    old, other = dataset(20, "a"), dataset(7, "b")
    position = BlendedDataset([old, other], [1, 1], seed=3).position(16)
    new = dataset(30, "a")  # in the same folder
    assert new.fingerprint != old.fingerprint and new.index.folder == old.index.folder
    sentence = (
        rf"a-packed: holds the index {new.fingerprint[:12]}, but this run has read 8 samples of the index "
        rf"{old.fingerprint[:12]} there, .* set data\.repacked to \"restart\" to read"
    )
    with pytest.raises(UserError, match=sentence):
        BlendedDataset([new, other], [1, 1], seed=3, start=through_json(position))
    blend = BlendedDataset([new, other], [1, 1], seed=3, start=position, repacked="restart")
    assert [change.split("/")[-1] for change in blend.changes] == [
        "a-packed: was packed anew after 8 samples, and is read from its beginning."
    ]
    drawn = [blend.locate(k) for k in range(16, 76)]
    assert sorted(i for source, i in drawn if source == 0) == list(range(30))
    resumed = BlendedDataset([new, other], [1, 1], seed=3, start=through_json(blend.position(40)))
    assert resumed.changes == [] and [resumed.locate(k) for k in range(40, 76)] == drawn[24:]


def test_an_index_packed_anew_that_was_never_read_is_no_loss(dataset):
    position = BlendedDataset([dataset(20, "a")], [1], seed=3).position(0)
    assert BlendedDataset([dataset(30, "a")], [1], seed=3, start=position).changes == []


def test_sources_that_come_and_go_are_named(dataset, tmp_path):
    a, b = dataset(20, "a"), dataset(7, "b")
    blend = BlendedDataset([b], [1], seed=3, start=BlendedDataset([a], [1], seed=3).position(5))
    assert [change.split("/")[-1] for change in blend.changes] == [
        "b-packed: is new to this run, and read from its beginning.",
        "a-packed: is read no more, after 5 of its samples.",
    ]
    assert BlendedDataset([a, b], [1, 1], seed=3).changes == []
    elsewhere = PackedDataset(a.index.folder.rename(tmp_path / "moved"))
    moved = BlendedDataset([elsewhere], [1], seed=3, start=BlendedDataset([a], [1], seed=3).position(5))
    assert moved.changes == [] and moved.locate(5) == BlendedDataset([a], [1], seed=3).locate(5)


def test_extreme_weights_and_sizes(dataset):
    blend = BlendedDataset([dataset(1, "a"), dataset(2, "b")], [1e-12, 1e12], seed=1)
    assert {blend.locate(k)[0] for k in range(10_000)} == {1}


def test_the_world_does_not_matter(dataset):
    """Ranks of any number that each read their share read the same samples together."""
    sources = [dataset(20, "a"), dataset(7, "b")]
    whole = [BlendedDataset(sources, [2, 1], seed=3).locate(k) for k in range(24)]
    for ranks in (1, 2, 4, 8):
        blends = [BlendedDataset(sources, [2, 1], seed=3) for _ in range(ranks)]
        assert [blends[k % ranks].locate(k) for k in range(24)] == whole


def sources_of(blend, steps, together, first=0):
    """The source of each step, once all of its samples are found to be of one."""
    found = []
    for step in range(steps):
        here = {blend.locate(first + step * together + i)[0] for i in range(together)}
        assert len(here) == 1
        found.append(here.pop())
    return found


@pytest.mark.parametrize("together", [1, 3, 8])
def test_by_iterations_a_step_is_of_one_source_and_shares_are_of_steps(dataset, together):
    blend = BlendedDataset([dataset(40, "long"), dataset(7, "short")], [0.92, 0.08], seed=1, together=together)
    steps = sources_of(blend, 300, together)
    for n in range(1, 301):
        assert abs(steps[:n].count(1) - 0.08 * n) < 1
    drawn = [i for source, i in map(blend.locate, range(300 * together)) if source == 1]
    epochs = [drawn[first : first + 7] for first in range(0, len(drawn) - 6, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert blend.drawn(300 * together) == [steps.count(0) * together, steps.count(1) * together]


def test_steps_of_one_sample_are_the_blend_of_samples(dataset):
    sources = [dataset(20, "a"), dataset(7, "b"), dataset(3, "c")]
    steps = BlendedDataset(sources, [5, 3, 2], seed=3, together=4)
    samples = BlendedDataset(sources, [5, 3, 2], seed=3)
    assert sources_of(steps, 5000, 4) == [samples.locate(k)[0] for k in range(5000)]


def test_every_sample_says_its_source(dataset):
    blend = BlendedDataset([dataset(5, "a"), dataset(7, "b")], [1, 2], seed=1, together=2)
    assert [blend.read(k).source for k in range(24)] == [blend.locate(k)[0] for k in range(24)]


def test_a_blend_of_steps_resumes_and_counts_anew_for_other_weights_or_sizes(dataset):
    sources = [dataset(40, "a"), dataset(30, "b")]
    straight = BlendedDataset(sources, [3, 1], seed=3, together=4)
    wanted = [straight.locate(k) for k in range(200)]
    drawn, position = [], None
    for begin, end in itertools.pairwise([0, 4, 52, 200]):
        resumed = BlendedDataset(sources, [3, 1], seed=3, start=position, together=4)
        drawn += [resumed.locate(k) for k in range(begin, end)]
        position = through_json(resumed.position(end))
        assert position == straight.position(end)
    assert drawn == wanted
    k = 200
    for weights, together, steps in (([1, 1], 4, 11), ([1, 1], 6, 9), ([1, 1], 1, 31), ([9, 1], 5, 20)):
        blend = BlendedDataset(sources, weights, seed=3, start=position, together=together)
        found = sources_of(blend, steps, together, k)
        share = weights[1] / sum(weights)
        assert all(abs(found[:n].count(1) - share * n) < 1 for n in range(1, steps + 1))
        drawn += [blend.locate(k + i) for i in range(steps * together)]
        k += steps * together
        position = through_json(blend.position(k))
    for source, size in ((0, 40), (1, 30)):
        rows = [i for found, i in drawn if found == source]
        epochs = [rows[first : first + size] for first in range(0, len(rows), size)]
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs[:-1])
        assert len(set(epochs[-1])) == len(epochs[-1])


def test_a_position_of_before_there_were_steps_is_one_of_samples(dataset):
    blend = BlendedDataset([dataset(20, "a"), dataset(7, "b")], [2, 1], seed=3)
    old = blend.position(13).to_json()
    del old["together"]
    assert Position.from_json(old) == blend.position(13)
