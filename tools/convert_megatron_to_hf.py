"""Convert a Megatron checkpoint into a folder that transformers and vLLM load as it is.

    python tools/convert_megatron_to_hf.py --load runs/llama-1m/step_000150 --output models/llama-1m

Needs no GPU. `--verify logits` also runs the model in transformers and in megatron-core and compares.
"""

from megatron_ultralong.cli import run
from megatron_ultralong.convert.megatron_to_hf import convert_megatron_to_hf

if __name__ == "__main__":
    run(convert_megatron_to_hf)
