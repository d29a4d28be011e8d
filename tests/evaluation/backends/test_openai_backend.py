"""The openai backend against transformers' own server, and against one that fails in every way."""

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_ultralong.data.tokenizer.chat import ChatTokenizer
from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.backends.hf_backend import HFBackend
from megatron_ultralong.evaluation.backends.interface import Answer, Forced, Judged, Prompt, Refused
from megatron_ultralong.evaluation.backends.model_options import ModelOptions
from megatron_ultralong.evaluation.backends.openai_backend import OpenAIBackend, server_url
from tests.evaluation.backends.faulty_server import Server, completion, half, hang, reset, send, serving

KEY = "sk-a-secret-of-the-test"


@pytest.fixture
def server() -> Iterator[Server]:
    with serving({"id": "tiny", "max_model_len": 192}) as made:
        made.replies = [completion("yes")]
        yield made


def backend_of(server: Server, tokenizer: ChatTokenizer, **changes: Any) -> OpenAIBackend:
    fields: dict[str, Any] = {"model": "tiny", "backend": "openai", "url": server.url, "retries": 2, "timeout": 1.0}
    return OpenAIBackend(ModelOptions(**(fields | changes)), tokenizer)


def prompt_of(text: str, tokenizer: ChatTokenizer, budget: int = 8, **changes: Any) -> Prompt:
    return Prompt(text=text, ids=tokenizer.encode(text), max_new_tokens=budget, **changes)


def ask(backend: OpenAIBackend, prompt: Prompt) -> Answer | Refused:
    ((_, answer),) = backend.generate([prompt])
    return answer


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting between tries takes no time; what is waited for stays."""
    monkeypatch.setattr("megatron_ultralong.evaluation.backends.json_http.FIRST_WAIT", 0.001)


def test_what_is_sent_and_what_comes_back(server: Server, tokenizer: ChatTokenizer) -> None:
    backend = backend_of(server, tokenizer)
    assert backend.context_length == 192
    server.replies = [completion("It is red.\nAnd more", "length")]
    answer = ask(backend, prompt_of("What is red?", tokenizer, stop=("\n",)))
    assert isinstance(answer, Answer)
    assert (answer.text, answer.ids, answer.finished) == ("It is red.", (), False)
    ((path, headers, body),) = server.asked
    assert path == "/v1/completions"
    assert "Authorization" not in headers
    assert body == {
        "model": "tiny",
        "prompt": tokenizer.encode("What is red?"),
        "max_tokens": 8,
        "temperature": 0,
        "stop": ["\n"],
    }


def test_chats_are_the_servers_to_render(server: Server, tokenizer: ChatTokenizer) -> None:
    backend = backend_of(server, tokenizer, endpoint="chat")
    server.replies = [send(200, {"choices": [{"message": {"content": "Yes."}, "finish_reason": "stop"}]})]
    messages = ({"role": "user", "content": "Is it?"},)
    answer = ask(backend, prompt_of("rendered", tokenizer, messages=messages))
    assert isinstance(answer, Answer)
    assert (answer.text, answer.finished) == ("Yes.", True)
    assert server.asked[0][0] == "/v1/chat/completions"
    assert server.asked[0][2]["messages"] == list(messages)
    with pytest.raises(UserError, match="--endpoint chat asks in chat form; give --form chat"):
        ask(backend, prompt_of("base", tokenizer))


def test_a_server_that_takes_no_ids_gets_text_without_what_it_adds(server: Server, tokenizer: ChatTokenizer) -> None:
    backend = backend_of(server, tokenizer)
    backend._start = "<|begin_of_text|>"
    server.replies = [send(400, {"detail": "prompt must be a string."}), completion("a"), completion("b")]
    for expected in ("a", "b"):
        answer = ask(backend, prompt_of("<|begin_of_text|>Once", tokenizer))
        assert isinstance(answer, Answer)
        assert answer.text == expected
    assert [type(body["prompt"]) for _, _, body in server.asked] == [list, str, str]
    assert server.asked[-1][2]["prompt"] == "Once"


@pytest.mark.parametrize(
    "faults",
    [
        [send(429, {"error": {"message": "slow down"}}, Retry_After="0")],
        [send(500, b"oops"), send(503, {"error": "loading"})],
        [send(200, b'{"choices": [{"te')],
        [reset, reset],
        [half],
        [hang],
    ],
    ids=["429", "500 and 503", "broken JSON", "reset", "half an answer", "hang"],
)
def test_what_passes_is_asked_again(server: Server, tokenizer: ChatTokenizer, faults: list[Any]) -> None:
    server.replies = [*faults, completion("at last")]
    answer = ask(backend_of(server, tokenizer), prompt_of("x", tokenizer))
    assert isinstance(answer, Answer)
    assert answer.text == "at last"
    assert len(server.asked) == len(faults) + 1


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        (send(429, {"error": {"message": "slow down"}}), r"asked 3 times, it failed: 429 \(slow down\)"),
        (send(500, b"<html>oops</html>"), r"asked 3 times, it failed: 500 \(<html>oops</html>\)"),
        (send(200, b"hello"), r"asked 3 times, it failed: its answer is no JSON \(b'hello'\)"),
        (hang, "asked 3 times, it failed: no answer in 0.1 s"),
        (send(404, {"error": {"message": "no model tiny"}}), r"404 \(no model tiny\); see what it serves"),
        (send(401, {"error": {"message": f"wrong key {KEY}"}}), r"wrong key \*\*\*\); the key in THE_KEY is refused"),
        (send(302, b"", Location="http://127.0.0.1:9/steal"), r"answers 302"),
        (send(200, {"object": "list"}), "its answer has no 'choices' but"),
        (send(200, {"choices": [{"text": 7}]}), "its choice has no text but 7"),
        (send(400, {"error": "max_tokens is odd"}), r"answers 400 \(max_tokens is odd\); see to the server's options"),
    ],
)  # fmt: skip
def test_what_stays_is_one_sentence(
    server: Server, tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch, fault: Any, complaint: str
) -> None:
    monkeypatch.setenv("THE_KEY", KEY)
    backend = backend_of(server, tokenizer, timeout=0.1 if fault is hang else 5.0, key_variable="THE_KEY")
    server.replies = [fault]
    with pytest.raises(UserError, match=complaint) as caught:
        ask(backend, prompt_of("x", tokenizer))
    assert KEY not in str(caught.value)
    assert server.asked[0][1]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in str(backend.describe())
    assert KEY not in repr(backend._http)


def test_too_long_a_prompt_is_refused_alone(server: Server, tokenizer: ChatTokenizer) -> None:
    """The others are answered, and the run says which were not."""
    said = "This model's maximum context length is 192 tokens. However, you requested 300 tokens."

    def reply(handler: Any, body: Any) -> None:
        long = len(body["prompt"]) > 20
        (send(400, {"error": {"message": said}}) if long else completion("ok"))(handler, body)

    server.replies = [reply]
    prompts = [prompt_of(text, tokenizer) for text in ("short", "word " * 50, "brief")]
    found = dict(backend_of(server, tokenizer).generate(prompts))
    assert found[1] == Refused(f"the server refuses it: {said}")
    assert [found[index].text for index in (0, 2)] == ["ok", "ok"]  # type: ignore[union-attr]


def test_several_are_asked_at_a_time(server: Server, tokenizer: ChatTokenizer) -> None:
    def slow(handler: Any, body: Any) -> None:
        time.sleep(0.2)
        completion(str(body["max_tokens"]))(handler, body)

    server.replies = [slow]
    prompts = [prompt_of("x", tokenizer, budget) for budget in range(1, 17)]
    started = time.monotonic()
    found = dict(backend_of(server, tokenizer, concurrency=8, timeout=30.0).generate(prompts))
    assert time.monotonic() - started < 16 * 0.2 / 2
    assert [found[index].text for index in range(16)] == [str(index + 1) for index in range(16)]  # type: ignore[union-attr]


def test_no_server_is_said_at_once(tokenizer: ChatTokenizer) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UserError, match=r"/v1/models: asked once, it failed: no connection"):
            OpenAIBackend(ModelOptions(model="tiny", backend="openai", url=url), tokenizer)


def test_a_key_that_is_missing_is_named(server: Server, tokenizer: ChatTokenizer) -> None:
    server.models = send(401, {"error": "who are you"})
    with pytest.raises(UserError, match=r"answers 401 \(who are you\); the key in NOT_SET_AT_ALL is not set; set it"):
        backend_of(server, tokenizer, key_variable="NOT_SET_AT_ALL")


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1"),
        ("http://localhost:8000/", "http://localhost:8000/v1"),
        ("https://host/openai/v1/", "https://host/openai/v1"),
    ],
)
def test_urls(given: str, url: str) -> None:
    assert server_url(given) == url


def test_a_url_that_is_none(tokenizer: ChatTokenizer) -> None:
    with pytest.raises(UserError, match="--url localhost:8000/v1: it is no http or https URL"):
        OpenAIBackend(ModelOptions(model="tiny", backend="openai", url="localhost:8000/v1"), tokenizer)


def logprobs_of(folder: Path, tokenizer: ChatTokenizer) -> Any:
    """Replies as vLLM does to prompt_logprobs, by the model itself."""
    model = HFBackend(folder, tokenizer).model

    def reply(handler: Any, body: Any) -> None:
        assert body["prompt_logprobs"] == 1
        ids = body["prompt"]
        with torch.no_grad():
            logits = model.logits(model.hidden(torch.tensor([ids]))[0])
        rows: list[Any] = [None]
        for token, row in zip(ids[1:], logits[:-1].log_softmax(-1), strict=True):
            best = int(row.argmax())
            entry = {"logprob": float(row[token]), "rank": int((row > row[token]).sum()) + 1, "decoded_token": "?"}
            rows.append({str(token): entry, str(best): entry | {"logprob": float(row[best]), "rank": 1}})
        content = {"choices": [{"text": "", "finish_reason": "length", "prompt_logprobs": rows}]}
        send(200, content)(handler, body)

    return reply


def test_judging_and_losses_are_those_of_the_model(
    server: Server, tokenizer: ChatTokenizer, model_folder: Path
) -> None:
    server.replies = [logprobs_of(model_folder, tokenizer)]
    own, backend = HFBackend(model_folder, tokenizer), backend_of(server, tokenizer, timeout=30.0)
    start = tokenizer.encode("The red key is ")
    ((_, greedy),) = own.generate([Prompt("", start, 3)])
    assert isinstance(greedy, Answer)
    forced = [
        Forced([*start, *greedy.ids], ((len(start), len(start) + len(greedy.ids)),)),
        Forced([*start, 9, 9], ((len(start), len(start) + 1), (len(start) + 1, len(start) + 2))),
    ]
    expected, found = dict(own.judge(forced)), dict(backend.judge(forced))
    for index in range(2):
        one, other = expected[index], found[index]
        assert isinstance(one, Judged)
        assert isinstance(other, Judged)
        assert one.greedy == other.greedy
        assert one.log_likelihood == pytest.approx(other.log_likelihood, rel=1e-4)
    assert found[0].greedy == (True,)  # type: ignore[union-attr]
    np.testing.assert_allclose(backend.losses(start, 2), own.losses(start, 2), rtol=1e-4)


def test_a_server_without_log_probabilities_refuses_to_judge(server: Server, tokenizer: ChatTokenizer) -> None:
    with pytest.raises(UserError, match=r"does not say prompt_logprobs \(vLLM does\), which judging"):
        list(backend_of(server, tokenizer).judge([Forced([1, 2, 3], ((1, 3),))]))


@pytest.fixture(scope="module")
def transformers_server(model_folder: Path) -> Iterator[str]:
    """transformers serve, on the random tiny model."""
    missing = [name for name in ("fastapi", "uvicorn", "openai", "pydantic") if not importlib.util.find_spec(name)]
    if missing:
        pytest.skip(f"transformers serve needs {missing[0]}: pip install transformers[serving]")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model_folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    process = subprocess.Popen(command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, stderr=subprocess.DEVNULL)
    try:
        for _ in range(1200):
            assert process.poll() is None, "transformers serve ended"
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=1):
                    break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_answers_of_a_real_server_are_those_of_the_model(
    transformers_server: str, model_folder: Path, tokenizer: ChatTokenizer, texts: list[str], endpoint: Any
) -> None:
    options = ModelOptions(
        model=str(model_folder),
        backend="openai",
        url=transformers_server,
        endpoint=endpoint,
        concurrency=3,
        timeout=60.0,
    )
    prompts = []
    for number in range(4):
        text = texts[number % 3][number * 40 : number * 40 + 150]
        messages = ({"role": "user", "content": text},)
        if endpoint == "chat":
            text = tokenizer.render(messages, generation_prompt=True)
        prompts.append(prompt_of(text, tokenizer, 10, messages=messages))
    expected = dict(HFBackend(model_folder, tokenizer).generate(prompts))
    backend = OpenAIBackend(options, tokenizer)
    found = dict(backend.generate(prompts))
    for index in range(4):
        ours, theirs = expected[index], found[index]
        assert isinstance(ours, Answer)
        assert isinstance(theirs, Answer)
        assert theirs.text.strip() == ours.text.strip()
        assert theirs.finished == ours.finished or len(ours.ids) == 10
    backend.close()
