"""The rope parts of published models' config.json files, and of their variants: numbers are facts.

Phi's two lists are those of Phi-3-vision-128k-instruct, whose language model is Phi-3-mini-128k-instruct as first
published, with `type` "su"; Phi-4-mini-instruct has partial rotary and `type` "longrope".
"""

from __future__ import annotations

from typing import Any

LLAMA31_SCALING: dict[str, Any] = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
PHI3_LONG = [
    1.0299999713897705, 1.0499999523162842, 1.0499999523162842, 1.0799999237060547, 1.2299998998641968,
    1.2299998998641968, 1.2999999523162842, 1.4499999284744263, 1.5999999046325684, 1.6499998569488525,
    1.8999998569488525, 2.859999895095825, 3.68999981880188, 5.419999599456787, 5.489999771118164,
    5.489999771118164, 9.09000015258789, 11.579999923706055, 15.65999984741211, 15.769999504089355,
    15.789999961853027, 18.360000610351562, 21.989999771118164, 23.079999923706055, 30.009998321533203,
    32.35000228881836, 32.590003967285156, 35.56000518798828, 39.95000457763672, 53.840003967285156,
    56.20000457763672, 57.95000457763672, 59.29000473022461, 59.77000427246094, 59.920005798339844,
    61.190006256103516, 61.96000671386719, 62.50000762939453, 63.3700065612793, 63.48000717163086,
    63.48000717163086, 63.66000747680664, 63.850006103515625, 64.08000946044922, 64.760009765625,
    64.80001068115234, 64.81001281738281, 64.81001281738281,
]  # fmt: skip
PHI3_SHORT = [
    1.05, 1.05, 1.05, 1.1, 1.1, 1.1, 1.2500000000000002, 1.2500000000000002, 1.4000000000000004,
    1.4500000000000004, 1.5500000000000005, 1.8500000000000008, 1.9000000000000008,
    *[2.000000000000001] * 19, 2.1000000000000005, 2.1000000000000005, 2.2,
    *[2.3499999999999996] * 4, 2.3999999999999995, 2.3999999999999995, 2.6499999999999986, 2.6999999999999984,
    2.8999999999999977, 2.9499999999999975, 3.049999999999997, 3.049999999999997, 3.049999999999997,
]  # fmt: skip
PHI4_LONG = [
    1, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817, 2.187582649, 2.446418898,
    2.735880826, 3.059592084, 3.421605075, 3.826451687, 4.279200023, 4.785517845, 5.351743533, 5.984965424,
    6.693110555, 7.485043894, 8.370679318, 9.36110372, 10.4687158, 11.70738129, 13.09260651, 14.64173252,
    16.37415215, 18.31155283, 20.47818807, 22.90118105, 25.61086418, 28.64115884, 32.03, 32.1, 32.13, 32.23,
    32.6, 32.61, 32.64, 32.66, 32.7, 32.71, 32.93, 32.97, 33.28, 33.49, 33.5, 44.16, 47.77,
]  # fmt: skip


def _config(model_type: str, hidden: int, heads: int, theta: float, length: int, **rest: Any) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "rope_theta": theta,
        "max_position_embeddings": length,
        "rope_scaling": None,
    } | rest


def _yarn(factor: float, original: int, **rest: Any) -> dict[str, Any]:
    return {"factor": factor, "original_max_position_embeddings": original} | rest


REAL: dict[str, dict[str, Any]] = {
    "Llama-3-8B": _config("llama", 4096, 32, 500000.0, 8192),
    "Llama-3.1-8B": _config("llama", 4096, 32, 500000.0, 131072, rope_scaling=LLAMA31_SCALING),
    "Llama-3.2-1B": _config(
        "llama", 2048, 32, 500000.0, 131072, head_dim=64, rope_scaling=LLAMA31_SCALING | {"factor": 32.0}
    ),
    "Llama-3.2-3B": _config(
        "llama", 3072, 24, 500000.0, 131072, head_dim=128, rope_scaling=LLAMA31_SCALING | {"factor": 32.0}
    ),
    "UltraLong-style": _config("llama", 4096, 32, 500000.0, 1048576, rope_scaling=LLAMA31_SCALING | {"factor": 128.0}),
    "Qwen2.5-7B": _config("qwen2", 3584, 28, 1000000.0, 131072),
    "Qwen2.5-7B-Instruct, its YaRN entry": _config(
        "qwen2", 3584, 28, 1000000.0, 32768, rope_scaling=_yarn(4.0, 32768, type="yarn")
    ),
    "Qwen2.5-7B-Instruct-1M": _config("qwen2", 3584, 28, 10000000.0, 1010000),
    "Qwen3-8B": _config("qwen3", 4096, 32, 1000000, 40960, head_dim=128),
    "Qwen3-8B, its YaRN entry": _config(
        "qwen3", 4096, 32, 1000000, 40960, head_dim=128, rope_scaling=_yarn(4.0, 32768, rope_type="yarn")
    ),
    "Mistral-7B-v0.3": _config("mistral", 4096, 32, 1000000.0, 32768, sliding_window=None),
    "Mistral-Nemo": _config("mistral", 5120, 32, 1000000.0, 131072, head_dim=128, sliding_window=None),
    "Phi-3-mini-128k": _config(
        "phi3",
        3072,
        32,
        10000.0,
        131072,
        original_max_position_embeddings=4096,
        rope_scaling={"long_factor": PHI3_LONG, "short_factor": PHI3_SHORT, "type": "su"},
    ),
    "Phi-4-mini": _config(
        "phi3",
        3072,
        24,
        10000.0,
        131072,
        original_max_position_embeddings=4096,
        partial_rotary_factor=0.75,
        rope_scaling={"long_factor": PHI4_LONG, "short_factor": [1.0] * 48, "type": "longrope"},
    ),
}


def head_dim(config: dict[str, Any]) -> int:
    """Channels of a head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
