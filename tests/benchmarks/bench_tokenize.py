"""Tokenizing 200 MB: tools/preprocess_data.py against Megatron-LM's way, and what bounds ours.

    python tests/benchmarks/bench_tokenize.py [--folder build/bench_tokenize] [--megabytes 200] [--no-peer] [--peaks]

The tokenizer is a byte-level BPE of 16,384 tokens with Llama 3's split, trained on the standard library's sources; the
text is those and the sources of the installed packages, a file a document, as JSON Lines. Both programs are timed as
commands, from their start to their end, with two workers; their .bin and .idx are compared byte for byte. The peak is
the largest sum of resident memory over all processes of a command (shared pages counted once for each).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import resource
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def sources() -> Iterator[str]:
    """Python files: the standard library's first, then the installed packages'."""
    library = Path(sysconfig.get_paths()["stdlib"])
    own = [path for path in sorted(library.rglob("*.py")) if "site-packages" not in path.parts]
    for path in [*own, *sorted(Path(sysconfig.get_paths()["purelib"]).rglob("*.py"))]:
        try:
            yield path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            pass


def prepare(folder: Path, size: int) -> None:
    """Write the tokenizer and the corpus, unless they are there."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    folder.mkdir(parents=True, exist_ok=True)
    corpus, done = folder / f"corpus{size // 1_000_000}.jsonl", 0
    if not corpus.exists():
        with corpus.open("w", encoding="utf-8") as stream:
            while done < size:
                for text in sources():
                    done += len(text.encode())
                    stream.write(
                        json.dumps({"text": f"{text}\n# {done}\n", "source": "code"}, ensure_ascii=False) + "\n"
                    )
                    if done >= size:
                        break
    if not (folder / "tokenizer" / "tokenizer.json").exists():
        bpe = Tokenizer(models.BPE(ignore_merges=True))
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"), level])
        bpe.decoder = decoders.ByteLevel()
        special = ["<|begin_of_text|>", "<|end_of_text|>"]
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=16384, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
        bpe.train_from_iterator((text for _, text in zip(range(1500), sources(), strict=False)), trainer)
        (folder / "tokenizer").mkdir(exist_ok=True)
        bpe.save(str(folder / "tokenizer" / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end_of_text|>"}
        (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))


def timed(command: list[str]) -> tuple[float, int, float]:
    """Seconds, peak resident bytes, and cores kept busy, of a command and all its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    start, peak = time.monotonic(), 0
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None:
        peak = max(peak, resident(process.pid))
        time.sleep(0.02)
    assert process.returncode == 0, command
    seconds, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, peak, (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / seconds


def resident(session: int) -> int:
    """Resident bytes of all processes of a session."""
    total = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session:
            total += int(fields[21]) * os.sysconf("SC_PAGESIZE")
    return total


def rate(name: str, size: int, work: Callable[[], object]) -> None:
    """Print MB/s of one stage on one core."""
    start = time.perf_counter()
    work()
    print(f"  {name:46} {size / 1e6 / (time.perf_counter() - start):8.0f} MB/s a core")


def bounds(corpus: Path, folder: Path) -> None:
    """Each stage alone, on one thread."""
    from megatron_ultralong.data.tokenizer.encoders import GigatokenEncoder, Recipe
    from megatron_ultralong.data.tokenizing.documents import Fields, parse
    from megatron_ultralong.data.tokenizing.streams import byte_blocks, line_blocks

    size = corpus.stat().st_size
    blocks = list(line_blocks(byte_blocks(str(corpus))))
    texts = [[parse(line, Fields())[0] for line in block] for block in blocks]
    fast = GigatokenEncoder(Recipe("huggingface", folder / "tokenizer" / "tokenizer.json"))
    print("what bounds it:")
    rate("reading and splitting lines", size, lambda: sum(map(len, line_blocks(byte_blocks(str(corpus))))))
    rate("parsing JSON", size, lambda: [parse(line, Fields()) for block in blocks for line in block])
    rate("gigatoken, its first pass", size, lambda: [fast.encode_batch(block) for block in texts])
    rate("gigatoken, words known", size, lambda: [fast.encode_batch(block) for block in texts])


def peaks(corpus: Path, folder: Path, tool: list[str]) -> None:
    """Peak memory for inputs that could ask for much."""
    texts = [json.loads(line)["text"] for _, line in zip(range(12_000), corpus.open(encoding="utf-8"), strict=False)]
    whole = "".join(texts)[:100_000_000]
    inputs = {"one line of 100 MB": folder / "line.jsonl", "one text file of 600 MB": folder / "file.txt"}
    inputs["600 MB of random words"] = folder / "random.jsonl"
    inputs["one line.gz of 100 MB"] = folder / "line.jsonl.gz"
    (folder / "line.jsonl").write_text(json.dumps({"text": whole}, ensure_ascii=False) + "\n", encoding="utf-8")
    with gzip.open(folder / "line.jsonl.gz", "wb", compresslevel=1) as packed:
        packed.write((folder / "line.jsonl").read_bytes())
    with (folder / "file.txt").open("w", encoding="utf-8") as stream:
        for _ in range(6):
            stream.write(whole)
    random = np.random.default_rng(0)
    with (folder / "random.jsonl").open("w", encoding="ascii") as stream:
        for _ in range(60):
            letters = random.integers(97, 123, size=(1_000_000, 10), dtype=np.uint8)
            letters[:, 0] = 32
            stream.write(json.dumps({"text": letters.tobytes().decode()}) + "\n")
    del texts, whole
    print("peak resident memory, all processes together; speed and cores:")
    for name, path in inputs.items():
        command = [str(path) if each == str(corpus) else each for each in tool]
        seconds, peak, cores = timed(command)
        speed = path.stat().st_size / 1e6 / seconds
        print(f"  {name:30} {peak / 1e6:6.0f} MB   {speed:6.0f} MB/s of the file, {cores:.2f} cores busy")
        path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench_tokenize")
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--peaks", action="store_true")
    arguments = parser.parse_args()
    folder, size = arguments.folder.resolve(), arguments.megabytes * 1_000_000
    prepare(folder, size)
    corpus = folder / f"corpus{arguments.megabytes}.jsonl"
    tool = [sys.executable, str(ROOT / "tools" / "preprocess_data.py"), "--input", str(corpus), "--workers", "2"]
    tool += ["--tokenizer-model", str(folder / "tokenizer"), "--overwrite", "--output-prefix", str(folder / "ours")]
    runs = [timed(tool) for _ in range(3)]
    seconds, peak = min(runs)[0], max(peak for _, peak, _ in runs)
    print(
        f"ours: {seconds:.2f} s (of {', '.join(f'{each:.2f}' for each, *_ in runs)}), "
        f"{size / 1e6 / seconds:.0f} MB/s, peak {peak / 1e6:.0f} MB in all processes"
    )
    if not arguments.no_peer:
        peer = [sys.executable, str(ROOT / "tests" / "benchmarks" / "preprocess_peer.py"), str(corpus)]
        theirs, their_peak, _ = timed([*peer, str(folder / "peer"), str(folder / "tokenizer"), "2"])
        print(f"Megatron-LM's way: {theirs:.2f} s, {size / 1e6 / theirs:.1f} MB/s, peak {their_peak / 1e6:.0f} MB")
        print(f"ratio: {theirs / seconds:.1f}")
        for end in ("bin", "idx"):
            assert (folder / f"ours.{end}").read_bytes() == (folder / f"peer.{end}").read_bytes()
        print("the same bytes in .bin and .idx")
    bounds(corpus, folder)
    if arguments.peaks:
        peaks(corpus, folder, tool)


if __name__ == "__main__":
    main()
