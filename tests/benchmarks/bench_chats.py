"""Time to find the responses of a chat, by turns: with a plan, and by the prompt of each (the slow definition).

python tests/benchmarks/bench_chats.py
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_ultralong.data.tokenizer.chat import Chat, ChatTokenizer
from megatron_ultralong.data.tokenizer.chat_template import ChatTemplate
from tests.data.tokenizer.shapes import build
from tests.data.tokenizer.templates import with_template


def measured(call: Callable[[], Any], renderings: list[int], best_of: int = 3) -> tuple[float, int]:
    """Milliseconds of the fastest call, and the renderings of one."""
    times = []
    for _ in range(best_of):
        renderings.clear()
        start = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - start))
    return min(times), len(renderings)


def compare(tokenizer: ChatTokenizer, turns: int, renderings: list[int]) -> str:
    """One line for a chat of so many turns."""
    messages = []
    for i in range(turns):
        messages.append({"role": "user", "content": f"Question {i} is about things; please answer it."})
        messages.append({"role": "assistant", "content": f"Answer {i} is as follows, and so on."})
    chat = Chat(tuple(messages), tuple(range(1, 2 * turns, 2)))

    def planned() -> Any:
        return tokenizer._renderings(chat, chat.responses)

    first, made = measured(planned, renderings, 1)
    later, once = measured(planned, renderings)
    line = f"{turns:5} turns: {later:8.2f} ms and {once} renderings, the first {first:8.1f} and {made}"
    if turns <= 256:
        slow, each = measured(lambda: tokenizer._turns.renderings(messages, None, chat.responses), renderings, 1)
        line += f"; by every prompt {slow:8.1f} and {each}"
    whole, _ = measured(lambda: tokenizer.samples(chat), renderings)
    return f"{line}; with ids and mask {whole:8.2f}"


def main() -> None:
    renderings: list[int] = []
    render = ChatTemplate.render

    def counted(self: ChatTemplate, *arguments: Any, **more: Any) -> str:
        renderings.append(1)
        return render(self, *arguments, **more)

    ChatTemplate.render = counted  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        for name in ("chatml", "llama-3.1", "qwen2.5", "phi-3"):
            tokenizer = ChatTokenizer(with_template(build("llama3", Path(folder) / name), name))
            for turns in (1, 8, 64, 256, 1024):
                print(f"{name:10}{compare(tokenizer, turns, renderings)}", flush=True)


if __name__ == "__main__":
    main()
