"""Convert a model in Hugging Face format into a Megatron checkpoint that any layout can load.

    python tools/convert_hf_to_megatron.py --hf models/Llama-3.1-8B-Instruct --output checkpoints/llama-3.1-8b

Needs no GPU and never holds the model in memory.
"""

import gc

if __name__ == "__main__":
    gc.disable()  # else a third of the start goes into looking for garbage in what is imported
    from megatron_ultralong.cli import run
    from megatron_ultralong.convert.hf_to_megatron import convert_hf_to_megatron

    run(convert_hf_to_megatron)
