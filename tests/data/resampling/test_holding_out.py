import numpy as np
import pytest

from megatron_ultralong.data.resampling.holding_out import hold_out
from megatron_ultralong.data.resampling.listing import Documents
from megatron_ultralong.errors import UserError


def test_a_share_is_held_out_of_every_list_alike(write_corpus):
    corpus = write_corpus([[1]] * 2000)
    repeated = Documents(np.repeat(np.arange(1999, -1, -2), 3), {"seed": 7})
    for documents in (None, repeated):
        listed = np.arange(2000) if documents is None else documents.ids
        rest, held_out = (hold_out(corpus, documents, 0.1, part) for part in ("rest", "held-out"))
        assert not set(rest.ids) & set(held_out.ids) and set(rest.ids) | set(held_out.ids) == set(listed)
        assert len(held_out.ids) == len(set(held_out.ids))
        assert len(held_out.ids) / len(set(listed)) == pytest.approx(0.1, abs=0.04)
        assert rest.ids.tolist() == [i for i in listed if i not in set(held_out.ids)]
    whole = hold_out(corpus, None, 0.1, "held-out")
    assert set(held_out.ids) == set(whole.ids) & set(repeated.ids)
    assert hold_out(corpus, repeated, 0.0, "rest") is repeated
    assert held_out.made_by == {"seed": 7, "held_out": 0.1, "part": "held-out"}


@pytest.mark.parametrize(("share", "said"), [(1.0, "1.0 is no share"), (0.0, "0.0 is no share"), (1e-9, "leaves none")])
def test_a_share_that_cannot_be_held_out(write_corpus, share, said):
    with pytest.raises(UserError, match=said):
        hold_out(write_corpus([[1]] * 3), None, share, "held-out")
