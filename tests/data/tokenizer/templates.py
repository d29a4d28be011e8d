"""Chat templates that behave as the known families' do, written by rule: what they add, merge, strip and refuse.

`with_template(folder, name)` puts one into a tokenizer's folder, with the special tokens it needs.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

ALTERNATE = (
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
)
SPLIT_SYSTEM = (
    "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% set told = messages[0].content %}"
    "{% else %}{% set rest = messages %}{% set told = '' %}{% endif %}"
)

LLAMA2 = (
    SPLIT_SYSTEM
    + "{% for m in rest %}"
    + ALTERNATE
    + "{% if m.role == 'user' %}<s>[INST] {% if loop.first and told %}<<SYS>>\n{{ told }}\n<</SYS>>\n\n{% endif %}"
    "{{ m.content.strip() }} [/INST]{% else %} {{ m.content.strip() }} </s>{% endif %}{% endfor %}"
)

MISTRAL = (
    SPLIT_SYSTEM
    + "<s>{% for m in rest %}"
    + ALTERNATE
    + "{% if m.role == 'user' %}[INST] {{ told ~ '\n\n' if loop.first and told }}{{ m.content }} [/INST]"
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)

MISTRAL_LAST = (
    SPLIT_SYSTEM
    + "<s>{% for m in rest %}"
    + ALTERNATE
    + "{% if m.role == 'user' %}[INST] {{ told ~ '\n\n' if m is sameas((rest | selectattr('role', 'equalto', 'user') "
    "| list)[-1]) and told }}{{ m.content }} [/INST]{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)


def _llama3(date: str) -> str:
    return (
        date
        + SPLIT_SYSTEM
        + "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{% if tools is defined and tools %}"
        "Environment: ipython\n{% endif %}Today Date: {{ today }}\n\n{{ told | trim }}<|eot_id|>"
        "{% for m in rest %}{% if m.role == 'tool' %}<|start_header_id|>ipython<|end_header_id|>\n\n"
        "{{ m.content | tojson }}<|eot_id|>{% elif 'tool_calls' in m %}{% if m.tool_calls | length != 1 %}"
        "{{ raise_exception('one call at once') }}{% endif %}{% set call = m.tool_calls[0].function %}"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
        '{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}<|eot_id|>'
        "{% else %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{% if loop.first and tools is defined and tools %}Functions:\n{% for tool in tools %}"
        "{{ tool | tojson(indent=4) }}\n\n{% endfor %}{% endif %}{{ m.content | trim }}<|eot_id|>"
        "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    )


LLAMA31 = _llama3("{% if date_string is not defined %}{% set today = '26 Jul 2024' %}{% endif %}")
LLAMA32 = _llama3(
    "{% if strftime_now is defined %}{% set today = strftime_now('%d %b %Y') %}"
    "{% else %}{% set today = '26 Jul 2024' %}{% endif %}"
)

_CALLS = (
    "{% for call in m.tool_calls %}{% set call = call.function or call %}{{ '\n' }}<tool_call>\n"
    '{"name": "{{ call.name }}", "arguments": {{ call.arguments | tojson }}}\n</tool_call>{% endfor %}'
)
_RESULTS = (
    "{% if loop.first or loop.previtem.role != 'tool' %}<|im_start|>user{% endif %}{{ '\n' }}<tool_response>\n"
    "{{ m.content }}\n</tool_response>{% if loop.last or loop.nextitem.role != 'tool' %}<|im_end|>\n{% endif %}"
)
_TOOLS = "# Tools\n<tools>{% for tool in tools %}{{ '\n' }}{{ tool | tojson }}{% endfor %}{{ '\n' }}</tools>"
_GO_ON = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"

QWEN25 = (
    "<|im_start|>system\n{{ messages[0]['content'] if messages[0]['role'] == 'system' else 'You help.' }}"
    "{% if tools %}{{ '\n\n' }}" + _TOOLS + "{% endif %}<|im_end|>\n"
    "{% for m in messages %}{% if m.role == 'system' and loop.first %}{% elif m.role == 'tool' %}"
    + _RESULTS
    + "{% elif m.role == 'assistant' and m.tool_calls %}<|im_start|>assistant"
    "{% if m.content %}{{ '\n' ~ m.content }}{% endif %}" + _CALLS + "<|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}" + _GO_ON
)

QWEN3 = (
    "{% if tools %}<|im_start|>system\n" + _TOOLS + "<|im_end|>\n{% endif %}"
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}{% if m.role == 'tool' %}"
    + _RESULTS
    + "{% elif m.role == 'assistant' %}{% set content = m.content if m.content is string else '' %}"
    "{% set thought = '' %}{% if m.reasoning_content is string %}{% set thought = m.reasoning_content %}"
    "{% elif '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}<|im_start|>assistant\n"
    "{% if loop.index0 > ns.last and (loop.last or thought) %}<think>\n{{ thought.strip('\n') }}\n</think>\n\n"
    "{% endif %}"
    "{{ content }}{% if m.tool_calls %}" + _CALLS + "{% endif %}<|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}" + _GO_ON
)

PHI3 = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}<|endoftext|>{% endif %}"
)

CHATML = "{% for m in messages %}<|im_start|>{{ m['role'] ~ '\n' ~ m['content'] }}<|im_end|>\n{% endfor %}" + _GO_ON

MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
    "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}{{ '\n' }}"
    "{% else %}<|im_start|>{{ m['role'] ~ '\n' ~ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}" + _GO_ON
)


@dataclasses.dataclass(frozen=True)
class Template:
    """One, and what is known of it."""

    text: str | list[dict[str, str]]
    end: str
    """The token that ends a response."""
    specials: str
    """Its special tokens."""
    system: bool = True
    """Whether it takes a message of the system."""
    alternates: bool = False
    """Whether it refuses all but user and assistant in turn."""
    tools: bool = False
    """Whether it takes tools."""
    steady: bool = True
    """Whether it renders earlier turns as it did at their time."""


_LLAMA3 = "<|begin_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|>"
_IM = "<|im_start|> <|im_end|>"

TEMPLATES: dict[str, Template] = {
    "llama-2": Template(LLAMA2, "</s>", "<s> </s>", alternates=True),
    "llama-3.1": Template(LLAMA31, "<|eot_id|>", _LLAMA3, tools=True),
    "llama-3.2": Template(LLAMA32, "<|eot_id|>", _LLAMA3, tools=True),
    "mistral": Template(MISTRAL, "</s>", "<s> </s> [INST] [/INST]", alternates=True),
    "mistral-last": Template(MISTRAL_LAST, "</s>", "<s> </s> [INST] [/INST]", alternates=True, steady=False),
    "qwen2.5": Template(QWEN25, "<|im_end|>", f"{_IM} <tool_call> </tool_call>", tools=True),
    "qwen3": Template(
        QWEN3, "<|im_end|>", f"{_IM} <tool_call> </tool_call> <think> </think>", tools=True, steady=False
    ),
    "phi-3": Template(PHI3, "<|end|>", "<|end|> <|user|> <|assistant|> <|system|> <|endoftext|>"),
    "chatml": Template(CHATML, "<|im_end|>", _IM),
    "marked": Template(MARKED, "<|im_end|>", _IM),
    "named": Template(
        [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": QWEN25}],
        "<|im_end|>",
        f"{_IM} <tool_call> </tool_call>",
        tools=True,
    ),
}
"""Every template by name."""


def with_template(folder: Path, name: str) -> Path:
    """Give a folder in Hugging Face format a template and the special tokens of it, named nowhere in its config."""
    template = TEMPLATES[name]
    set_template(folder, template.text)
    path = folder / "tokenizer.json"
    if not path.is_file():  # sentencepiece's own file, which transformers converts
        path = folder / "tokenizer_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config["additional_special_tokens"] = template.specials.split()
        path.write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")
        return folder
    whole = json.loads(path.read_text(encoding="utf-8"))
    vocab = whole["model"]["vocab"]
    known = dict(vocab) if isinstance(vocab, dict) else {piece: i for i, (piece, _) in enumerate(vocab)}
    known |= {entry["content"]: entry["id"] for entry in whole["added_tokens"]}
    listed = {entry["content"] for entry in whole["added_tokens"]}
    for word in template.specials.split():
        if word not in listed:
            flags = {"single_word": False, "lstrip": False, "rstrip": name == "phi-3", "normalized": False}
            special = {"special": word not in ("<tool_call>", "</tool_call>", "<think>", "</think>")}
            entry = {"id": known.setdefault(word, max(known.values()) + 1), "content": word, **flags, **special}
            whole["added_tokens"].append(entry)
    whole["added_tokens"].sort(key=lambda entry: entry["id"])
    path.write_text(json.dumps(whole, ensure_ascii=False), encoding="utf-8")
    return folder


def set_template(folder: Path, text: str | list[dict[str, str]] | None) -> None:
    """Write a chat template, several by name, or none into tokenizer_config.json."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("chat_template", None)
    if text is not None:
        config["chat_template"] = text
    path.write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")
