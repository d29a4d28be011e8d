"""What the imported transformers makes of folders: `python -m tests.convert.loaded < JOBS.json`, an answer a job.

A job {"config": FOLDER} is answered with the effective entries of its config.json, {"run": FOLDER, "length": N, "save":
FILE} by running the model over N tokens and saving the logits of the last 64 positions.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

ENTRIES = (
    "model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
    "hidden_act max_position_embeddings initializer_range rms_norm_eps tie_word_embeddings attention_bias mlp_bias "
    "head_dim sliding_window use_sliding_window max_window_layers layer_types"
).split()
"""All that decides what a model of these families computes, but its rope."""


def answer(job: dict[str, Any]) -> Any:
    """Do one job."""
    if "config" in job:
        try:
            loaded = AutoConfig.from_pretrained(job["config"], trust_remote_code=False)
        except Exception as error:  # whatever it is: it does not take it
            return str(error)
        entries = {name: getattr(loaded, name) for name in ENTRIES if hasattr(loaded, name)}
        rope = getattr(loaded, "rope_parameters", None) or {"rope_theta": loaded.rope_theta}
        return {**entries, "rope_theta": rope["rope_theta"]}
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(
        job["run"], dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=False
    ).eval()
    vocabulary = model.config.vocab_size
    tokens = torch.randint(vocabulary, (1, job["length"]), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.save(model(input_ids=tokens, use_cache=False).logits[0, -64:].clone(), job["save"])
    return None


if __name__ == "__main__":
    results = [answer(job) for job in json.loads(sys.stdin.read())]
    print(json.dumps({"version": transformers.__version__, "results": results}))
