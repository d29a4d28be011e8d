import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_ultralong.data.packing.index import PackOptions, write_packed_index
from megatron_ultralong.data.reading.dataset import PackedDataset

DOCUMENTS = [[10, 11, 12, 13, 14], [20, 21, 22], [30, 31, 32, 33]]
MASKS = [[0, 0, 1, 1, 1], [0, 1, 1], [0, 0, 0, 1]]


@pytest.fixture
def pack(write_corpus, tmp_path):
    def pack(
        masks=None,
        document_mask=False,
        loss_on_separators=True,
        loss_on_first_tokens=True,
        padded_length=None,
        **options,
    ):
        corpus = write_corpus(DOCUMENTS, masks=masks)
        write_packed_index(corpus, tmp_path / "p", PackOptions(**options))
        return PackedDataset(
            tmp_path / "p",
            document_mask=document_mask,
            loss_on_separators=loss_on_separators,
            loss_on_first_tokens=loss_on_first_tokens,
            padded_length=padded_length,
        )

    return pack


def lists(sample):
    return [getattr(sample, name).tolist() for name in ("tokens", "labels", "loss_mask", "position_ids", "cu_seqlens")]


# Stream with separator [7]: 10 11 12 13 14 7 20 21 22 7 30 31 32 33.
def test_concatenate_the_papers_way(pack):
    dataset = pack(sequence_length=6, separator=(7,))
    assert len(dataset) == 2 and dataset.sequence_length == 6 and dataset.vocab_size == 1000
    assert lists(dataset.read(0)) == [
        [10, 11, 12, 13, 14, 7],
        [11, 12, 13, 14, 7, 20],
        [1, 1, 1, 1, 1, 1],
        [0, 1, 2, 3, 4, 5],
        [0, 6],
    ]
    assert lists(dataset.read(1))[:2] == [[20, 21, 22, 7, 30, 31], [21, 22, 7, 30, 31, 32]]


def test_concatenate_with_a_document_mask(pack):
    dataset = pack(sequence_length=6, separator=(7,), document_mask=True)
    assert lists(dataset.read(0))[2:] == [[1, 1, 1, 1, 1, 0], [0, 1, 2, 3, 4, 5], [0, 6]]
    assert lists(dataset.read(1))[2:] == [[1, 1, 1, 0, 1, 1], [0, 1, 2, 3, 0, 1], [0, 4, 6]]


def test_a_sample_that_begins_within_a_separator(pack):
    dataset = pack(sequence_length=5, separator=(7,), document_mask=True)
    assert lists(dataset.read(1)) == [
        [7, 20, 21, 22, 7],
        [20, 21, 22, 7, 30],
        [0, 1, 1, 1, 0],
        [0, 0, 1, 2, 3],
        [0, 1, 5],
    ]


@pytest.mark.parametrize(
    ("options", "masks"),
    [
        # Labels of the two samples: 11 12 13 14 7 8, 20 21 22 7 8 30.
        ({"loss_on_separators": False}, [[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 1]]),
        ({"loss_on_first_tokens": False}, [[1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 0]]),
        ({"document_mask": True}, [[1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 0]]),
        ({"loss_on_separators": False, "loss_on_first_tokens": False}, [[1, 1, 1, 1, 0, 0], [0, 1, 1, 0, 0, 0]]),
        ({"loss_on_separators": False, "document_mask": True}, [[1, 1, 1, 1, 0, 0], [0, 1, 1, 0, 0, 0]]),
    ],
)
def test_which_labels_count(pack, options, masks):
    dataset = pack(sequence_length=6, separator=(7, 8), **options)
    assert [dataset.read(i).loss_mask.tolist() for i in range(2)] == masks
    # The samples' border lies within a separator in the middle of a rank's share.
    assert dataset.read(0, [(4, 5), (5, 6), (1, 2)]).loss_mask.tolist() == [masks[0][i] for i in (4, 5, 1)]


def test_a_kept_last_sample_is_padded(pack):
    for document_mask, documents in ((False, [[0, 5], [0, 5], [0, 5]]), (True, [[0, 5], [0, 1, 5], [0, 4, 5]])):
        dataset = pack(sequence_length=5, separator=(7,), last_sample="keep", document_mask=document_mask)
        assert [dataset.read(i).cu_seqlens.tolist() for i in range(3)] == documents
        assert lists(dataset.read(2))[:3] == [[30, 31, 32, 33, 0], [31, 32, 33, 0, 0], [1, 1, 1, 0, 0]]
        assert dataset.read(2, [(3, 4)]).loss_mask.tolist() == [0]
        assert dataset.read(1).loss_mask.tolist() == ([0, 1, 1, 1, 0] if document_mask else [1, 1, 1, 1, 1])


def test_padding_to_a_length_that_ranks_divide_does_not_count(pack):
    """Six tokens as eight: tokens and labels of the six are as without, positions begin anew."""
    dataset = pack(sequence_length=6, separator=(7,), padded_length=8)
    tokens, labels, mask, positions, bounds = lists(dataset.read(0))
    assert (tokens[:6], labels[:6]) == ([10, 11, 12, 13, 14, 7], [11, 12, 13, 14, 7, 20])
    assert (mask, positions, bounds) == ([1, 1, 1, 1, 1, 1, 0, 0], [0, 1, 2, 3, 4, 5, 0, 1], [0, 8])
    assert dataset.read(1, [(7, 8), (4, 5)]).loss_mask.tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"do not lie in 0\.\.8"):
        dataset.read(0, [(7, 9)])
    masked = pack(sequence_length=6, separator=(7,), padded_length=8, document_mask=True)
    assert lists(masked.read(1))[2:] == [[1, 1, 1, 0, 1, 1, 0, 0], [0, 1, 2, 3, 0, 1, 0, 1], [0, 4, 6, 8]]
    chats = pack(masks=MASKS, sequence_length=6, packing="best_fit", padded_length=8)
    short = pack(masks=MASKS, sequence_length=6, packing="best_fit")
    for i in range(len(short)):
        assert lists(chats.read(i))[2] == [*lists(short.read(i))[2], 0, 0]


def test_the_layout_of_a_sample(pack):
    dataset = pack(sequence_length=5, separator=(7, 8))
    layout = dataset.layout(1)
    assert layout.starts.tolist() == [0, 2, 7] and layout.ends.tolist() == [0, 5]
    assert layout.separators().tolist() == [0, 1, 5, 6]
    assert dataset.documents(1).tolist() == [0, 1]
    assert lists(dataset[1])[0] == [7, 8, 20, 21, 22]


def test_a_whole_sample_is_written_once(pack):
    sample = pack(sequence_length=6).read(0)
    assert np.shares_memory(sample.tokens, sample.labels)
    two = pack(sequence_length=6).read(0, [(0, 3), (3, 6)])
    assert np.shares_memory(two.tokens, two.labels) and two.tokens.tolist() == sample.tokens.tolist()
    assert not sample.loss_mask.flags.writeable and not sample.position_ids.flags.writeable


def test_best_fit_with_a_document_mask(pack):
    dataset = pack(sequence_length=9, packing="best_fit", document_mask=True)
    assert len(dataset) == 2
    assert lists(dataset.read(0)) == [
        [10, 11, 12, 13, 14, 30, 31, 32, 33],
        [11, 12, 13, 14, 30, 31, 32, 33, 0],
        [1, 1, 1, 1, 0, 1, 1, 1, 0],
        [0, 1, 2, 3, 4, 0, 1, 2, 3],
        [0, 5, 9],
    ]
    assert lists(dataset.read(1)) == [
        [20, 21, 22, 0, 0, 0, 0, 0, 0],
        [21, 22, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0, 0],
        [0, 1, 2, 0, 1, 2, 3, 4, 5],
        [0, 3, 9],
    ]


def test_best_fit_without_a_document_mask(pack):
    sample = lists(pack(sequence_length=9, packing="best_fit").read(0))
    assert sample[2:] == [[1, 1, 1, 1, 1, 1, 1, 1, 0], list(range(9)), [0, 9]]


def test_cut_documents_end_where_they_were_cut(pack):
    dataset = pack(sequence_length=3, packing="best_fit", overlong="cut", document_mask=True)
    samples = [lists(dataset.read(i)) for i in range(len(dataset))]
    assert [sample[0] for sample in samples] == [[10, 11, 12], [30, 31, 32], [20, 21, 22]]
    assert [sample[1] for sample in samples] == [[11, 12, 13], [31, 32, 33], [21, 22, 0]]
    assert [sample[2] for sample in samples] == [[1, 1, 1], [1, 1, 1], [1, 1, 0]]


def test_the_loss_of_chats_is_on_the_responses(pack):
    dataset = pack(sequence_length=9, packing="best_fit", masks=MASKS)
    assert dataset.read(0).loss_mask.tolist() == [0, 1, 1, 1, 0, 0, 0, 1, 0]
    dataset = pack(sequence_length=6, separator=(7,), masks=MASKS)
    # Labels 11 12 13 14 7 20: the separator is no response.
    assert dataset.read(0).loss_mask.tolist() == [0, 1, 1, 1, 0, 0]


def test_dtypes(pack):
    sample = pack(sequence_length=6, document_mask=True).read(0)
    kinds = [sample.tokens, sample.labels, sample.loss_mask, sample.position_ids, sample.cu_seqlens]
    assert [array.dtype.name for array in kinds] == ["int64", "int64", "float32", "int64", "int32"]


def test_what_is_not_there(pack):
    dataset = pack(sequence_length=6)
    for i in (-1, len(dataset)):
        with pytest.raises(IndexError):
            dataset.read(i)
    for span in ((0, 7), (-1, 3), (4, 4)):
        with pytest.raises(ValueError, match="spans"):
            dataset.read(0, [span])


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=8),
    separator=st.sampled_from([(), (7,), (7, 8, 9)]),
    packing=st.sampled_from(["concatenate", "best_fit"]),
    document_mask=st.booleans(),
    chat=st.booleans(),
    on_separators=st.booleans(),
    on_first_tokens=st.booleans(),
    cp=st.sampled_from([1, 2, 3]),
)
def test_a_ranks_share_is_that_share_of_the_whole(
    write_corpus, tmp_path, lengths, separator, packing, document_mask, chat, on_separators, on_first_tokens, cp
):
    documents = [list(range(100 * i + 1, 100 * i + 1 + length)) for i, length in enumerate(lengths)]
    masks = [[token % 2 for token in document] for document in documents] if chat else None
    size = 2 * cp * 2
    joined = packing == "concatenate"
    if joined and sum(lengths) + (len(lengths) - 1) * len(separator) < 2:
        return
    options = PackOptions(
        sequence_length=size,
        packing=packing,
        separator=separator if joined else (),
        last_sample="keep" if joined else "drop",
        overlong="cut",
    )
    write_packed_index(write_corpus(documents, masks=masks), tmp_path / "p", options)
    flags = {"loss_on_separators": on_separators, "loss_on_first_tokens": on_first_tokens}
    dataset = PackedDataset(tmp_path / "p", document_mask=document_mask, **flags)
    for i in range(len(dataset)):
        whole = dataset.read(i)
        assert whole.cu_seqlens[0] == 0 and whole.cu_seqlens[-1] == size and (np.diff(whole.cu_seqlens) > 0).all()
        for rank in range(cp):
            chunks = (rank, 2 * cp - 1 - rank)
            share = dataset.read(i, [(2 * chunk, 2 * chunk + 2) for chunk in chunks])
            places = np.concatenate([np.arange(2 * chunk, 2 * chunk + 2) for chunk in chunks])
            for name in ("tokens", "labels", "loss_mask", "position_ids"):
                assert getattr(share, name).tolist() == getattr(whole, name)[places].tolist()
            assert share.cu_seqlens.tolist() == whole.cu_seqlens.tolist()
