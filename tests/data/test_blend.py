import pytest

from megatron_ultralong.data.blend import BlendedDataset
from megatron_ultralong.data.dataset import PackedDataset
from megatron_ultralong.data.packed_index import PackOptions, write_packed_index
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
