"""A real browser without a window, to look at a page as a reader's would.

Chromium is spoken to by the Chrome DevTools protocol over a pair of pipes (--remote-debugging-pipe): each message is
JSON and ends in a zero byte. So this needs no package, no port and no driver.

    python tests/evaluation/report/browser.py report.html picture.png [width] [light|dark]
"""

from __future__ import annotations

import base64
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("browser.sh")
SECONDS = 60.0
WIDER = """(() => {
  const width = document.documentElement.clientWidth, found = [];
  const scrolls = element => {
    for (let up = element.parentElement; up && up !== document.body; up = up.parentElement)
      if (['auto', 'scroll', 'hidden'].includes(getComputedStyle(up).overflowX)) return true;
    return false;
  };
  if (document.documentElement.scrollWidth > width)
    found.push('the page itself: ' + document.documentElement.scrollWidth);
  for (const element of document.body.querySelectorAll('*')) {
    const box = element.getBoundingClientRect();
    if (box.width > 0 && (box.right > width + 1 || box.left < -1) && !scrolls(element))
      found.push(element.tagName + '.' + element.getAttribute('class') + ': ' + box.left + ' to ' + box.right);
  }
  return found;
})()"""


def find_browser() -> str | None:
    """Path of Chromium, or None where there is none."""
    done = subprocess.run([SCRIPT, "check"], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


class Browser:
    """One page of one browser, started for it.

    Attributes:
        messages: what the page has written to its console, errors it threw and things it could not load.
    """

    def __init__(self, program: str) -> None:
        self.messages: list[str] = []
        self._folder = tempfile.TemporaryDirectory(prefix="browser")
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        words = [program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
                 f"--user-data-dir={self._folder.name}", "--remote-debugging-pipe", "about:blank"]  # fmt: skip
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "-", *words],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._in, selectors.EVENT_READ)
        self._buffer, self._number, self._session = b"", 0, None
        self._events: list[str] = []
        try:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for room in ("Page", "Runtime", "Log", "Network"):
                self.call(f"{room}.enable")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the browser."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait(SECONDS)
        os.close(self._in)
        os.close(self._out)
        self._selector.close()
        for _ in range(20):  # its children may still be writing
            try:
                self._folder.cleanup()
                return
            except OSError:
                time.sleep(0.1)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask, and wait for the answer."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive(method)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def show(self, page: Path, width: int, height: int = 900, *, scheme: str = "light") -> None:
        """Load a page at a width in CSS pixels, and wait until it is there."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._events.clear()
        self.call("Page.navigate", url=page.absolute().as_uri())
        while "Page.loadEventFired" not in self._events:
            self._receive("Page.navigate")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"])
        return answer["result"].get("value")

    def wider(self) -> list[str]:
        """What is wider than the page, but for what scrolls by itself."""
        return list(self.evaluate(WIDER))

    def picture(self) -> bytes:
        """The whole page as PNG."""
        width, height = self.evaluate("[innerWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(answer["data"])

    def _receive(self, waiting_for: str) -> dict[str, Any]:
        """The next message; events are noted."""
        deadline = time.monotonic() + SECONDS
        while b"\0" not in self._buffer:
            if not self._selector.select(max(deadline - time.monotonic(), 0)):
                raise TimeoutError(f"the browser says nothing on {waiting_for}")
            if not (piece := os.read(self._in, 1 << 20)):
                raise RuntimeError(f"the browser ended at {waiting_for}")
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        method, parameters = message.get("method", ""), message.get("params", {})
        self._events.append(method)
        if method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded", "Network.loadingFailed"):
            self.messages.append(f"{method}: {json.dumps(parameters)}")
        return message


if __name__ == "__main__":
    program = find_browser()
    if program is None:
        sys.exit("there is no Chromium; " + str(SCRIPT))
    page, picture, *more = sys.argv[1:]
    with Browser(program) as browser:
        browser.show(Path(page), int(more[0]) if more else 1200, scheme=(*more, "light")[1] if more else "light")
        Path(picture).write_bytes(browser.picture())
        print(*browser.messages, *browser.wider(), sep="\n")
