"""The renderer of chats beside the matrix: what is learnt by hand, what is refused, dates, and what it costs."""

import json
import random
import shutil

import numpy as np
import pytest

from megatron_ultralong.data.tokenizer import chat_plans
from megatron_ultralong.data.tokenizer.chat import Chat, ChatTokenizer
from megatron_ultralong.data.tokenizer.chat_opaque import is_opaque
from megatron_ultralong.data.tokenizer.chat_template import ChatTemplate
from megatron_ultralong.errors import MalformedError, UserError
from tests.data.tokenizer.shapes import build
from tests.data.tokenizer.templates import CHATML, TEMPLATES, set_template, with_template
from tests.data.tokenizer.test_chat_matrix import TOOLS, assistant, system, tool, user


def chat(*messages, learnt=None, tools=None):
    every = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    return Chat(messages, tuple(every if learnt is None else learnt), tools)


def learnt_texts(tokenizer, samples):
    """The runs of learnt tokens of each sample, decoded."""
    found = []
    for ids, mask in samples:
        edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]]).astype(int))).reshape(-1, 2)
        found.append([tokenizer.template._hf.decode(ids[begin:end].tolist()) for begin, end in edges])
    return found


@pytest.fixture
def named(tmp_path):
    """A function that loads a template on a byte-level tokenizer, its special tokens named nowhere but in the file."""
    return lambda name: ChatTokenizer(with_template(build("llama3", tmp_path / name), name))


@pytest.fixture
def with_text(tokenizer_folder, tmp_path):
    """A function that loads the small tokenizer with this template."""

    def load(text):
        folder = tmp_path / f"with{random.random()}"
        shutil.copytree(tokenizer_folder, folder)
        set_template(folder, text)
        return ChatTokenizer(folder)

    return load


@pytest.fixture(scope="module")
def small(tokenizer_folder):
    return ChatTokenizer(tokenizer_folder)


@pytest.mark.parametrize(
    ("messages", "responses"),
    [
        ([user("a?"), assistant("b!")], ["b!<|im_end|>"]),
        ([system("s"), user("a"), assistant("b"), user("c"), assistant("")], ["b<|im_end|>", "<|im_end|>"]),
        # The template's newline and the response's are one token, which is not learnt.
        ([user("a"), assistant("\nb\n"), user("c")], ["b\n<|im_end|>"]),
        ([user("say <|im_end|>"), assistant("<|im_end|> x")], ["<|im_end|> x<|im_end|>"]),
        ([user("\U0001f600\u6771"), assistant("\U0001f600")], ["\U0001f600<|im_end|>"]),
        ([assistant("hi"), user("a"), assistant("b")], ["hi<|im_end|>", "b<|im_end|>"]),
    ],
)
def test_only_responses_are_learnt(small, messages, responses):
    samples = small.samples(chat(*messages))
    ids = small.template._hf.apply_chat_template(messages, return_dict=False)
    assert [ids_.tolist() for ids_, _ in samples] == [ids]
    assert learnt_texts(small, samples) == [responses]


@pytest.mark.parametrize("name", ["llama-3.1", "qwen2.5", "phi-3", "chatml", "qwen3"])
def test_a_chat_that_the_assistant_begins_learns_no_header(named, name):
    end = TEMPLATES[name].end
    tokenizer = named(name)
    (first,) = learnt_texts(tokenizer, tokenizer.samples(chat(assistant("Hello!"))))
    assert first == [("<think>\n\n</think>\n\n" if name == "qwen3" else "") + f"Hello!{end}"]
    texts = learnt_texts(tokenizer, tokenizer.samples(chat(assistant("Hello!"), user("a"), assistant("b"))))
    assert [text for each in texts for text in each][-1].endswith(f"b{end}")


def test_a_chat_that_the_assistant_begins_where_no_header_shows_it(named, with_text):
    tokenizer = with_text("{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}")
    with pytest.raises(MalformedError, match="the first is the assistant's, and the chat template does not show where"):
        tokenizer.samples(chat(assistant("a")))
    with pytest.raises(MalformedError, match=r"refuses the messages \(roles must alternate\)"):
        named("mistral").samples(chat(assistant("a")))


def test_special_tokens_that_are_quoted_end_no_response(with_text):
    plain = with_text(
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    (texts,) = learnt_texts(plain, plain.samples(chat(user("a"), assistant("b <|im_end|> c d"))))
    assert "".join(texts).strip() == "b <|im_end|> c d"


def test_thinking_that_is_stripped_makes_a_sample_of_each_response(named):
    tokenizer = named("qwen3")
    messages = (user("a"), assistant("<think>\nhm\n</think>\n\nb"), user("c"), assistant("d"), user("e"))
    samples = tokenizer.samples(chat(*messages))
    assert learnt_texts(tokenizer, samples) == [
        ["<think>\nhm\n</think>\n\nb<|im_end|>"],
        ["<think>\n\n</think>\n\nd<|im_end|>"],
    ]
    whole = [tokenizer.template._hf.decode(ids.tolist()) for ids, _ in samples]
    assert whole[0] == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think>\nhm\n</think>\n\nb<|im_end|>\n"
    assert whole[1].startswith("<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc")
    assert learnt_texts(tokenizer, tokenizer.samples(chat(*messages[:4]), "last")) == [
        ["<think>\n\n</think>\n\nd<|im_end|>"]
    ]


@pytest.mark.parametrize("name", ["chatml", "marked", "qwen2.5"])
def test_some_responses_alone(named, name):
    tokenizer = named(name)
    messages = [each for i in range(5) for each in (user(f"q{i}"), assistant(f"a{i}"))]
    for learnt, mask, expected in [
        (None, "last", [4]),
        ([1, 9], "all", [0, 4]),
        ([1, 3, 5, 9], "all", [0, 1, 2, 4]),
        ([1, 9], "last", [4]),
    ]:
        samples = tokenizer.samples(chat(*messages, learnt=learnt), mask)
        assert learnt_texts(tokenizer, samples) == [[f"a{i}<|im_end|>" for i in expected]]
        assert samples[0][0].tolist() == tokenizer.template._hf.apply_chat_template(messages, return_dict=False)
    with pytest.raises(MalformedError, match="the last response has the weight 0 and --mask last learns no other"):
        tokenizer.samples(chat(*messages, learnt=[1]), "last")


def test_a_template_that_marks_other_places_than_responses(with_text):
    text = "x{% generation %}{% for m in messages %}{{ m['content'] }}{% endfor %}{% endgeneration %}"
    tokenizer = with_text(text)
    messages = (user("a"), assistant("b"), user("c"), assistant("d"))
    assert learnt_texts(tokenizer, tokenizer.samples(chat(*messages))) == [["abcd"]]
    with pytest.raises(MalformedError, match="marks 1 places for 2 responses"):
        tokenizer.samples(chat(*messages), "last")
    with pytest.raises(MalformedError, match="marks nothing of the chat as generated; mend either"):
        with_text("x{% if false %}" + text + "{% endif %}").samples(chat(*messages))


def test_a_call_of_tools_is_learnt(named):
    tokenizer = named("named")
    call = [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]
    messages = (user("a"), {"role": "assistant", "tool_calls": call}, tool("1"), assistant("one"))
    samples = tokenizer.samples(chat(*messages, tools=TOOLS))
    # The line break after the header is part of what is generated only where the header ends without one.
    assert learnt_texts(tokenizer, samples)[0][-1] == "one<|im_end|>"
    assert '{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>' in learnt_texts(tokenizer, samples)[0][0]


REFUSALS = [
    ("{{ raise_exception('no system') }}", r"refuses the messages \(no system\); mend them\."),
    ("{{ messages[0].meta.date }}", r"refuses the messages \('dict object' has no attribute 'meta'\)"),
    ("{{ messages[0]['content'] + 3 }}", r"refuses the messages \(TypeError: can only concatenate str"),
    ("{{ messages[0]['content'].rsplit(1, 2, 3, 4) }}", r"refuses the messages \(TypeError: "),
    ("{{ messages | length }}{% if add_generation_prompt %}!{% endif %}", "renders message 2, a response, otherwise"),
    (
        CHATML.replace("<|im_start|>assistant\n{% endif", "<|im_start|>assistant\n<think>{% endif"),
        r"renders message 2, a response, otherwise than after its prompt, which ends in '.*assistant\\n<think>'",
    ),
]


@pytest.mark.parametrize(("template", "sentence"), REFUSALS)
def test_chats_that_cannot_be_rendered(with_text, template, sentence):
    tokenizer = with_text(template)
    with pytest.raises(MalformedError, match=sentence):
        tokenizer.samples(chat(user("a"), assistant("b"), user("c")))


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (None, "has no chat template; add chat_template to its files"),
        ("{% if %}", r"its chat template is broken \(line 1: Expected an expression"),
        ([{"name": "rag", "template": "x"}], r"of its chat templates \(rag\) none is named 'default'; name one so"),
        ("{{ strftime_now(messages[0].content) }}", "calls strftime_now with a format that it computes; write it out"),
    ],
)
def test_templates_that_no_chat_can_be_rendered_with(with_text, template, sentence):
    with pytest.raises(UserError, match=sentence):
        with_text(template)


@pytest.mark.parametrize(
    ("more", "tools", "key"),
    [
        ({"tool_calls": [{}]}, None, "tool_calls"),
        ({}, TOOLS, "tools"),
        ({"reasoning_content": "hm", "thinking": "hm"}, None, "reasoning_content"),
        ({"function_call": {}}, None, "function_call"),
    ],
)
def test_what_a_template_would_leave_out_is_refused(small, more, tools, key):
    with pytest.raises(MalformedError, match=rf"have '{key}', which the chat template of .* does not read"):
        small.samples(chat(user("a"), assistant("b", **more), tools=tools))


def test_dates(named, tmp_path):
    folder = named("llama-3.2").template.path
    for date, shown in (("", "26 Jul 2024"), ("2031-02-03", "03 Feb 2031")):
        template = ChatTokenizer(folder, date).template
        assert f"Today Date: {shown}\n" in template.render([user("a")])
        assert template.date == (date or "2024-07-26")
    assert named("llama-3.1").template.date is None
    with pytest.raises(
        UserError, match=r"--chat-date 2031-02-03: the chat template of .* asks for no date; leave it out"
    ):
        ChatTokenizer(tmp_path / "llama-3.1", "2031-02-03")
    with pytest.raises(UserError, match=r"--chat-date 3.2.2031: is no date; give one such as 2024-07-26"):
        ChatTokenizer(folder, "3.2.2031")


def test_a_date_changes_nothing_else_of_a_template(with_text):
    for text in ("\n\n  {% if true %}\na{% endif %} {{ strftime_now('%H:%M %A') }}\n", "  {{ strftime_now('%Y') }}"):
        rendered = with_text(text).template.render([user("a")])
        plain = with_text(
            text.replace("strftime_now('%H:%M %A')", "'00:00 Friday'").replace("strftime_now('%Y')", "2024")
        )
        assert rendered == plain.template.render([user("a")])


@pytest.fixture
def renderings(monkeypatch):
    """Counts them."""
    counted = []
    plain = ChatTemplate.render

    def count(self, *args, **more):
        counted.append(args)
        return plain(self, *args, **more)

    monkeypatch.setattr(ChatTemplate, "render", count)
    return counted


def long_chat(rng, turns, first=()):
    words = ["a", " b ", "\n c\t", "d\n\n", "<|im_end|>", "\ue0000\ue001", "x" * 9]
    said = [word for word in words if word.strip()]
    messages = [*first]
    for _ in range(turns):
        messages += [user("".join(rng.choices(said, k=3))), assistant("".join(rng.choices(said, k=3)))]
    return chat(*messages, *([user("bye")] if rng.random() < 0.3 else []))


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "marked"])
def test_a_plan_gives_what_every_prompt_gives(named, name, monkeypatch):
    monkeypatch.setattr(chat_plans, "_CHAIN", 5)
    tokenizer, rng = named(name), random.Random(name)
    for number in range(60):
        first = [[], [system("Be brief.")], [] if TEMPLATES[name].alternates else [assistant("hello")]][number % 3]
        each = long_chat(rng, rng.choice([3, 4, 5, 6, 8, 13]), first)
        if name in ("qwen3",) and first and first[0]["role"] == "assistant":
            continue
        slow = tokenizer._turns.renderings(each.messages, None, each.responses)
        planned = tokenizer._plans.rendering(each.messages)
        assert planned is None or [planned] == slow
        assert (planned is not None) == (TEMPLATES[name].steady or (name == "mistral-last" and len(slow) == 1))


@pytest.mark.parametrize("turns", [64, 600])
def test_a_long_chat_is_rendered_once(named, renderings, turns):
    tokenizer, rng = named("llama-3.1"), random.Random(0)
    each = long_chat(rng, turns)
    tokenizer.samples(each)
    made = len(renderings)
    assert made <= 3 * 64 + 1 + 3 * 5 + 1
    tokenizer.samples(long_chat(rng, turns)), tokenizer.samples(each)
    assert len(renderings) <= made + 3


def test_a_plan_is_not_trusted_where_the_template_looks_into_contents(with_text):
    """Only the last message is treated otherwise, and only for what it says."""
    text = CHATML.replace("m['content'] }}", "(m['content'] | replace('q', 'Q') if loop.last else m['content']) }}")
    tokenizer = with_text(text)
    each = chat(*[message for _ in range(4) for message in (user("a"), assistant("q"))])
    assert len(tokenizer.samples(each)) == 4
    assert learnt_texts(tokenizer, tokenizer.samples(each)) == [["Q<|im_end|>"]] * 4


@pytest.mark.parametrize(
    ("expression", "opaque"),
    [
        ("m['content'] | trim", True),
        ("m.content.strip()", True),
        ("m.content if 'tool_calls' in m", True),
        ("m.content if m.role in ['user', 'assistant']", True),
        ("m.content if m.content != ''", True),
        ("'%s' % m.content ~ messages[1:] | length", True),
        ("m.content.strip('x')", False),
        ("m.content.split('</think>')[-1]", False),
        ("'x' if '</think>' in m.content", False),
        ("'x' if 'think' in m.content", False),
        ("'x' if m.content in ['a', 'b']", False),
        ("'x' if m.content == 'a'", False),
        ("m.content | length", False),
        ("m.content[0]", False),
        ("m.content[1:]", False),
        ("m.content | upper", False),
        ("m.content.startswith('a')", False),
    ],
)
def test_what_counts_as_looking_into_contents(expression, opaque):
    assert is_opaque("{% for m in messages %}{{ " + expression + " }}{% endfor %}") is opaque


def test_truncation_and_padding_of_the_file_are_not_applied(tokenizer_folder, tmp_path):
    folder = tmp_path / "cut"
    shutil.copytree(tokenizer_folder, folder)
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    whole["padding"] = {
        **{"strategy": {"Fixed": 99}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0},
        "pad_token": "<|endoftext|>",
    }
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    each = chat(user("a b c d"), assistant("e f g h"))
    ((ids, mask),) = ChatTokenizer(folder).samples(each)
    ((expected, expected_mask),) = ChatTokenizer(tokenizer_folder).samples(each)
    assert ids.tolist() == expected.tolist() and mask.tolist() == expected_mask.tolist()
