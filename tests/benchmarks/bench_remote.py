"""Tokenizing from an object store on this machine against the same files on disk: seconds, ratio, and peak memory.

    python tests/benchmarks/bench_remote.py [--folder build/bench_tokenize] [--megabytes 300]

Needs s3fs and moto (`tests/object_store.sh bench`). The store is moto's server in a process of its own, which has the
same cores and is Python, so a store on other machines costs less; the rate at which one client alone fetches the
objects is printed beside the ratio. They have 16 MB each, since moto goes through a whole one for each range of it.
Both runs are commands with two workers, timed from start to end, and the bytes of .bin and .idx are compared. The peak
is that of all processes of the command, without the server.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench_tokenize import ROOT, prepare, timed

PART = 16_000_000
ACCESS = {"AWS_ACCESS_KEY_ID": "name", "AWS_SECRET_ACCESS_KEY": "password", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def store() -> Iterator[str]:
    """An empty bucket's URL; its endpoint and credentials are in the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL
    )
    os.environ |= {**ACCESS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                assert server.poll() is None
                time.sleep(0.1)
        import s3fs

        s3fs.S3FileSystem().mkdir("bench")
        yield "s3://bench"
    finally:
        server.kill()
        server.wait()


def inputs(folder: Path, megabytes: int) -> list[Path]:
    """The same documents as folders of JSON Lines of 16 MB, of the same compressed, and of Parquet."""
    import pyarrow
    import pyarrow.parquet

    ends = ("jsonl", "jsonl.gz", "parquet")
    folders = [folder / f"{end}{megabytes}" for end in ends]
    for each in folders:
        each.mkdir(exist_ok=True)
    with (folder / f"corpus{megabytes}.jsonl").open("rb") as source:
        for i in range(10**6):
            lines = source.readlines(PART)
            if not lines:
                return folders
            plain, packed, table = (each / f"{i:04}.{end}" for each, end in zip(folders, ends, strict=True))
            plain.write_bytes(b"".join(lines))
            packed.write_bytes(gzip.compress(b"".join(lines), 1))
            texts = pyarrow.table({"text": [json.loads(line)["text"] for line in lines]})
            pyarrow.parquet.write_table(texts, table, row_group_size=1000)
    raise AssertionError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench_tokenize")
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--runs", type=int, default=2, help="of each, the fastest of which counts")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    prepare(folder, arguments.megabytes * 1_000_000)
    tool = [sys.executable, str(ROOT / "tools" / "preprocess_data.py"), "--workers", "2", "--overwrite"]
    tool += ["--tokenizer-model", str(folder / "tokenizer")]
    with store() as url:
        import s3fs

        system = s3fs.S3FileSystem()
        for path in inputs(folder, arguments.megabytes):
            files = sorted(path.iterdir())
            for each in files:
                system.put_file(str(each), f"{url}/{path.name}/{each.name}")
            size, start = sum(each.stat().st_size for each in files) / 1e6, time.perf_counter()
            for each in files:
                system.cat_file(f"{url}/{path.name}/{each.name}")
            alone = size / (time.perf_counter() - start)
            seconds = {}
            for name, place in (("disk", str(path)), ("store", f"{url}/{path.name}")):
                prefix = folder / f"from_{name}"
                runs = [timed([*tool, "--input", place, "--output-prefix", str(prefix)]) for _ in range(arguments.runs)]
                seconds[name] = min(runs)[0]
                rate, peak = size / seconds[name], max(peak for _, peak, _ in runs)
                said = f"{path.name} from {name}: {seconds[name]:.2f} s, {rate:.0f} MB/s, peak {peak / 1e6:.0f} MB"
                print(said, flush=True)
            ratio = seconds["store"] / seconds["disk"]
            print(f"  ratio {ratio:.2f}; one client alone fetches {alone:.0f} MB/s", flush=True)
            for end in ("bin", "idx"):
                assert Path(f"{folder}/from_disk.{end}").read_bytes() == Path(f"{folder}/from_store.{end}").read_bytes()


if __name__ == "__main__":
    main()
