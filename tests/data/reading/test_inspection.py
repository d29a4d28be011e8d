import re

import pytest

from megatron_ultralong.data.packing.index import PackOptions, write_packed_index
from megatron_ultralong.data.reading.dataset import PackedDataset
from megatron_ultralong.data.reading.inspection import as_html, as_text, inspect_sample
from megatron_ultralong.errors import UserError

DOCUMENTS = [[10, 11, 12, 13, 14], [20, 21, 22], [30, 31, 32, 33]]


@pytest.fixture
def dataset(write_corpus, tmp_path):
    def dataset(options=None, **flags):
        options = options or {"sequence_length": 6, "separator": (7, 8), "last_sample": "keep"}
        write_packed_index(write_corpus(DOCUMENTS), tmp_path / "p", PackOptions(**options))
        return PackedDataset(tmp_path / "p", **flags)

    return dataset


def decode(ids):
    return " ".join(map(str, ids)) + " "


def rows(inspection):
    return [(piece.begin, piece.end, piece.kind, piece.corpus_id, piece.counts) for piece in inspection.segments]


def test_pieces_of_a_sample(dataset):
    # Samples: 10 11 12 13 14 7 | 8 20 21 22 7 8 | 30 31 32 33 - -, each with the next token as its last label.
    whole = dataset()
    assert rows(inspect_sample(whole, 1, decode)) == [
        (0, 1, "separator", 0, True),
        (1, 4, "document", 1, True),
        (4, 6, "separator", 1, True),
    ]
    assert rows(inspect_sample(whole, 2, decode)) == [(0, 4, "document", 2, True), (4, 6, "padding", -1, False)]
    assert [piece.text for piece in inspect_sample(whole, 1, decode).segments] == ["8 ", "20 21 22 ", "7 8 "]


def test_labels_that_do_not_count_and_a_window(dataset):
    masked = dataset(document_mask=True, loss_on_separators=False)
    assert rows(inspect_sample(masked, 1, decode)) == [
        (0, 1, "separator", 0, True),  # as a label it belongs to the sample before
        (1, 2, "document", 1, False),
        (2, 4, "document", 1, True),
        (4, 6, "separator", 1, False),
    ]
    assert rows(inspect_sample(masked, 1, decode, begin=3, tokens=2)) == [
        (3, 4, "document", 1, True),
        (4, 5, "separator", 1, False),
    ]


def test_facts(dataset):
    facts = inspect_sample(dataset(), 1, decode).facts
    assert (facts["documents"], facts["tokens of documents"], facts["tokens of separators"]) == (
        "1 (whole or in part)",
        "3",
        "3",
    )
    assert facts["labels that count"] == "6 of 6" and facts["separator"] == "[7, 8]"
    facts = inspect_sample(dataset({"sequence_length": 9, "packing": "best_fit"}), 0, decode).facts
    assert facts["lengths (least, quartiles, most)"].startswith("4, ") and facts["packing"] == "best-fit"


def test_text(dataset):
    masked = dataset(document_mask=True, loss_on_separators=False)
    shown = as_text(inspect_sample(masked, 1, decode), colours=False)
    assert "document 1 of the sample, 1 of the corpus" in shown and "~[7 8 ]~" in shown and "\x1b" not in shown
    hostile = as_text(inspect_sample(masked, 1, lambda ids: "a\x1b[2Jb\r\n"), colours=False)
    assert "\x1b" not in hostile and "\\x1b[2Jb\\r" in hostile
    assert "\x1b[" in as_text(inspect_sample(masked, 1, decode), colours=True)


def test_html(dataset):
    page = as_html([inspect_sample(dataset(), i, lambda ids: "<script>&'\"</script>") for i in (1, 2)])
    assert "<script" not in page and "&lt;script&gt;&amp;" in page
    assert len(re.findall("<h2>", page)) == 2 and "2 tokens of padding" in page
    assert "http" not in page


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((3,), "samples: 3 is none of the 3 samples of"),
        ((-1,), "samples: -1 is none of"),
        ((0, decode, 6), "begin: 6 with 4096 tokens is no part of a sample of 6"),
        ((0, decode, 0, 0), "begin: 0 with 0 tokens"),
    ],
)
def test_what_is_not_there(dataset, arguments, sentence):
    i, *rest = arguments
    with pytest.raises(UserError, match=sentence):
        inspect_sample(dataset(), i, *(rest or [decode]))
