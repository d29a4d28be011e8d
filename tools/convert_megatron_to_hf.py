"""Convert a Megatron checkpoint into a folder that transformers and vLLM load as it is.

    python tools/convert_megatron_to_hf.py --load runs/llama-1m/step_000150 --output models/llama-1m

Needs no GPU. `--verify logits` also runs the model in transformers and in megatron-core and compares.
"""

import gc

if __name__ == "__main__":
    gc.disable()  # else a third of the start goes into looking for garbage in what is imported
    from megatron_ultralong.cli import run
    from megatron_ultralong.convert.megatron_to_hf import convert_megatron_to_hf

    run(convert_megatron_to_hf)
