"""Megatron-LM's tools/preprocess_data.py in its essentials, to measure against; see bench_tokenize.py.

A pool of workers each with a Hugging Face fast tokenizer; JSON lines go to them by `imap` in chunks of 32, lists of ids
come back pickled, and the parent alone appends them with megatron-core's own IndexedDatasetBuilder. One partition.

    python tests/benchmarks/preprocess_peer.py INPUT.jsonl PREFIX TOKENIZER WORKERS
"""

import json
import multiprocessing
import os
import sys

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers are the parallelism

import numpy as np
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
from transformers import AutoTokenizer


class Encoder:
    tokenizer = None

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def initializer(self) -> None:
        Encoder.tokenizer = AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)

    def encode(self, line: str) -> tuple[list[int], list[int], int]:
        ids = Encoder.tokenizer(json.loads(line)["text"], add_special_tokens=False).input_ids
        return ids, [len(ids)], len(line)


def main(path: str, prefix: str, folder: str, workers: int) -> None:
    size = len(AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
    encoder = Encoder(folder)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(size))
    with open(path, encoding="utf-8") as stream, multiprocessing.Pool(workers, initializer=encoder.initializer) as pool:
        for ids, lengths, _ in pool.imap(encoder.encode, stream, 32):
            if lengths[0]:
                builder.add_document(np.array(ids), lengths)
    builder.finalize(f"{prefix}.idx")


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]))
