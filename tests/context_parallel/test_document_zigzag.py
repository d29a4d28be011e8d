"""Transformer Engine's cut of packed documents, against the example in its own documentation."""

import pytest
import torch

from megatron_ultralong.context_parallel import document_zigzag
from megatron_ultralong.context_parallel.core_attention import packed_documents
from megatron_ultralong.errors import UserError


def held(bounds, rank, cp_size):
    return [position for span in document_zigzag.spans(bounds, rank, cp_size, 0) for position in range(*span)]


def test_documents_of_eight_and_four_on_two_ranks():
    """The table for qkv_format "thd" in attn_forward_func_with_cp's docstring, documents one behind the other."""
    assert held((0, 8, 12), 0, 2) == [0, 1, 6, 7, 8, 11]
    assert held((0, 8, 12), 1, 2) == [2, 3, 4, 5, 9, 10]


def test_one_rank_holds_documents_of_any_length():
    assert held((0, 3, 4, 9), 0, 1) == list(range(9))


def test_a_document_that_cannot_be_cut_is_named():
    with pytest.raises(UserError) as said:
        document_zigzag.spans((0, 8, 14), 1, 2, 7)
    assert str(said.value) == (
        "data.document_mask: document 1 of sample 7 has 6 tokens, not divisible by 2 x parallel.context = 4 as "
        'Transformer Engine needs; set parallel.attention to "torch", which takes any lengths, or pad the documents.'
    )


def test_what_transformer_engine_is_told():
    told = packed_documents((0, 8, 12), torch.device("cpu"))
    assert told.qkv_format == "thd" and told.max_seqlen_q == told.max_seqlen_kv == 8
    for name in ("cu_seqlens_q", "cu_seqlens_kv", "cu_seqlens_q_padded", "cu_seqlens_kv_padded"):
        bounds = getattr(told, name)
        assert bounds.dtype == torch.int32 and bounds.tolist() == [0, 8, 12]
    assert told.cp_group is None and told.local_cp_size is None  # megatron-core would change groups by them
