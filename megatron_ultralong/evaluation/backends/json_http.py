"""JSON over HTTP with retries, by the standard library: one request, one thread, one sentence where it fails.

Tried again are refused and broken connections, timeouts, 408, 409, 425, 429, all of 5xx, and answers that are no JSON;
after 1, 2, 4 ... seconds with a random part, or after what Retry-After says. Redirects are not followed, so that a key
goes to no other host.
"""

from __future__ import annotations

import dataclasses
import datetime
import email.utils
import http.client
import json
import random
import threading
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

import orjson

from megatron_ultralong.errors import UserError

FIRST_WAIT = 1.0
"""Seconds before a request is first asked again."""

_AGAIN = {408, 409, 425, 429}
_LONGEST_WAIT = 300.0
_SAID = 300


class RefusedRequestError(Exception):
    """The server understood and says no (4xx); `status` and what it said."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"{status}: {said}")
        self.status, self.said = status, said


class _PassingError(Exception):
    """What may be gone the next time."""

    def __init__(self, said: str, wait: float | None = None) -> None:
        super().__init__(said)
        self.wait = wait


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


@dataclasses.dataclass
class JsonHttp:
    """A server's URL and how patiently it is asked.

    Args:
        url: without a slash at its end.
        key: sent as a bearer token; "" for none. It is taken out of everything that is said.
        timeout: seconds without a byte until a request is given up.
        retries: times that a request is asked again.
    """

    url: str
    key: str = dataclasses.field(default="", repr=False)
    timeout: float = 600.0
    retries: int = 6

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"--url {self.url}: it is no http or https URL; give one like http://localhost:8000/v1.")
        self.stopped = threading.Event()
        """Set: no request is tried again."""
        self._opener = urllib.request.build_opener(_NoRedirect)

    def get(self, path: str, retries: int | None = None) -> Any:
        """The JSON at `path`."""
        return self._asked(path, None, self.retries if retries is None else retries)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON that the server answers `body` with.

        Raises:
            RefusedRequestError: 4xx that asking again does not mend.
            UserError: it failed every time.
        """
        return self._asked(path, orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), self.retries)

    def _asked(self, path: str, body: bytes | None, retries: int) -> Any:
        for attempt in range(retries + 1):
            try:
                return self._once(path, body)
            except _PassingError as error:
                said = str(error)
                wait = error.wait if error.wait is not None else FIRST_WAIT * 2.0**attempt * random.uniform(0.75, 1.25)
            if attempt < retries and self.stopped.wait(min(wait, _LONGEST_WAIT)):
                break
        times = "once" if retries == 0 else f"{retries + 1} times"
        raise UserError(f"{self.url}{path}: asked {times}, it failed: {said}; see to the server, then run again.")

    def _once(self, path: str, body: bytes | None) -> Any:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(self.url + path, data=body, headers=headers)
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                content = response.read()
        except urllib.error.HTTPError as error:
            raise self._status(error) from None
        except TimeoutError:
            raise _PassingError(f"no answer in {self.timeout:g} s") from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise _PassingError(f"no answer in {self.timeout:g} s") from None
            raise _PassingError(self._clean(f"no connection ({error.reason})")) from None
        except (OSError, http.client.HTTPException) as error:
            raise _PassingError(self._clean(f"the connection broke ({error or type(error).__name__})")) from None
        try:
            return orjson.loads(content)
        except orjson.JSONDecodeError:
            raise _PassingError(self._clean(f"its answer is no JSON ({content[:60]!r})")) from None

    def _status(self, error: urllib.error.HTTPError) -> Exception:
        try:
            content = error.read()
        except (OSError, http.client.HTTPException):
            content = b""
        said = self._clean(_message(content) or str(error.reason))
        if error.code in _AGAIN or error.code >= 500:
            return _PassingError(f"{error.code} ({said})", retry_after(error.headers.get("Retry-After")))
        return RefusedRequestError(error.code, said)

    def _clean(self, text: str) -> str:
        text = " ".join(text.split())[:_SAID]
        return text.replace(self.key, "***") if self.key else text


def retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks to wait: a number, or a date."""
    if not value:
        return None
    try:
        return max(float(value), 0.0)
    except ValueError:
        pass
    try:
        when = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=datetime.timezone.utc)
    return max((when - datetime.datetime.now(datetime.timezone.utc)).total_seconds(), 0.0)


def _message(content: bytes) -> str:
    """What an error's body says, in any of the usual places."""
    try:
        found = json.loads(content)
    except ValueError:
        return content.decode(errors="replace")
    for name in ("error", "detail", "message"):
        if isinstance(found, dict) and name in found:
            found = found[name]
    return found if isinstance(found, str) else json.dumps(found)
