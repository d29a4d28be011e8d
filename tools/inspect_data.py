"""Show packed samples, as text or HTML: documents in colours, separators, labels that do not count, lengths."""

from __future__ import annotations

from pathlib import Path

from megatron_ultralong.cli import run


def inspect(
    *,
    index: Path,
    tokenizer_model: Path,
    samples: tuple[int, ...] = (0,),
    begin: int = 0,
    tokens: int = 4096,
    document_mask: bool = False,
    loss_on_separators: bool = True,
    loss_on_first_tokens: bool = True,
    output: Path | None = None,
) -> None:
    """Print samples of a packed index, or write them as one HTML page.

    Args:
        index: Folder written by tools/pack_corpus.py.
        tokenizer_model: Folder of the tokenizer that made the tokens.
        samples: Which samples, counted from 0 in the order of the index (training shuffles them).
        begin: Position of each sample from which its text is shown.
        tokens: How many tokens of each sample are shown; statistics are always of the whole sample.
        document_mask: As the run reads this source (data.document_mask or its own), for the labels that count.
        loss_on_separators: As the run reads this source.
        loss_on_first_tokens: As the run reads this source.
        output: HTML file to write; by default the samples are printed.
    """
    import logging
    import sys

    from megatron_ultralong.data.reading.dataset import PackedDataset
    from megatron_ultralong.data.reading.inspection import as_html, as_text, inspect_sample
    from megatron_ultralong.data.tokenizer.identity import check_tokenizer
    from megatron_ultralong.data.tokenizer.tokenizer import load_tokenizer
    from megatron_ultralong.files import atomic_file, disk_errors_named

    dataset = PackedDataset(
        index,
        document_mask=document_mask,
        loss_on_separators=loss_on_separators,
        loss_on_first_tokens=loss_on_first_tokens,
    )
    check_tokenizer(tokenizer_model, dataset.tokenizer_fingerprint, dataset.index.corpus.prefix)
    decode = load_tokenizer(tokenizer_model).decode
    shown = [inspect_sample(dataset, i, decode, begin, tokens) for i in samples]
    if output is None:
        print("\n\n".join(as_text(one, sys.stdout.isatty()) for one in shown))
    else:
        with disk_errors_named(output), atomic_file(output) as temporary:
            temporary.write_text(as_html(shown), encoding="utf-8")
        logging.getLogger(__name__).info("wrote %s", output)


if __name__ == "__main__":
    run(inspect)
