"""What the kernels do where the system starts few threads or none: the same work, in those that there are.

A limit on address space is the way to get there that needs no other user: a thread's stack is reserved at once, so
that with stacks of 1 GiB the limit says how many threads start.
"""

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[3] / "csrc"
STACK = 1 << 30
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits threads as Linux does")

KERNELS = """
import hashlib, resource, sys, threading
import numpy as np
from megatron_ultralong.data.packing import _packing

room = int(sys.argv[1])
if room:
    pages = int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room,) * 2)
    try:
        threading.Thread(target=lambda: None).start()
        sys.exit("a thread was started")
    except RuntimeError:
        pass
shuffled = _packing.permutation(1_000_003, 7)
lengths = np.arange(1, 300_001, dtype=np.int32) % 50 + 1
index, total = _packing.build_sample_index(lengths, shuffled[shuffled < len(lengths)], 3, 4096, True)
tokens, start, none = np.arange(400_000, dtype=np.int32), np.zeros(1, dtype=np.int64), np.zeros(0, dtype=np.int64)
spans = [(0, 100_000), (200_000, 300_000), (1, 100_001), (200_001, 300_001)]
whole = np.array([400_000], dtype=np.int32)
read = _packing.gather(tokens, start, whole, start, none, 0, 0, 0, 1, 1 << 40, 0, spans)[0]
try:
    _packing.build_sample_index(lengths, np.full(1_000_000, len(lengths)), 3, 4096, True)
except (IndexError, ValueError) as error:
    print(type(error).__name__)
print(hashlib.sha256(shuffled.tobytes() + index.tobytes() + read.tobytes()).hexdigest(), total)
"""

# Task 0 waits for all others, so that threads that are to start have started or have failed to.
HEADER = """
#include "parallel.hpp"
#include <cstdio>
#include <set>
#include <stdexcept>
#include <sys/resource.h>

int main(int, char **arguments) {
    const rlimit limit{std::strtoul(arguments[1], nullptr, 10), RLIM_INFINITY};
    setrlimit(RLIMIT_AS, &limit);
    std::atomic<int> done[64]{};
    std::set<std::thread::id> workers;
    std::mutex mutex;
    packing::parallel(64, [&](std::int64_t i) {
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
        const std::lock_guard<std::mutex> lock(mutex);
        workers.insert(std::this_thread::get_id());
        ++done[i];
    }, 8);
    for (const auto &times : done) {
        if (times != 1) return 1;
    }
    try {
        packing::parallel(64, [](std::int64_t i) { if (i == 40) throw std::out_of_range("40"); }, 8);
        return 2;
    } catch (const std::out_of_range &) {
    }
    std::printf("%zu", workers.size());
}
"""


def run(words: list[str]) -> str:
    def large_stacks() -> None:
        resource.setrlimit(resource.RLIMIT_STACK, (STACK, resource.getrlimit(resource.RLIMIT_STACK)[1]))

    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, preexec_fn=large_stacks)
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout


@pytest.fixture(autouse=True)
def _stacks_may_be_large() -> None:
    if 0 <= resource.getrlimit(resource.RLIMIT_STACK)[1] < STACK:
        pytest.skip("this system allows no stacks of 1 GiB")


def test_kernels_give_the_same_where_no_thread_starts() -> None:
    program = [sys.executable, "-c", KERNELS]
    assert run([*program, str(STACK // 2)]) == run([*program, "0"])


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_threads_that_start_do_the_work_of_those_that_do_not(tmp_path: Path) -> None:
    source = tmp_path / "threads.cpp"
    source.write_text(HEADER)
    binary = tmp_path / "threads"
    subprocess.run(["g++", "-std=c++17", "-pthread", f"-I{CSRC}", str(source), "-o", str(binary)], check=True)
    for stacks, workers in ((0, 1), (1, 2), (4, 5), (100, 8)):
        assert run([str(binary), str(stacks * STACK + STACK // 2)]) == str(workers)
