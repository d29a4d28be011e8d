"""How each backend is opened; what a backend needs is imported then."""

from __future__ import annotations

from pathlib import Path

from megatron_ultralong.data.tokenizer.chat import ChatTokenizer
from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.backends.interface import Backend
from megatron_ultralong.evaluation.backends.model_options import ModelOptions


def open_backend(options: ModelOptions, tokenizer: ChatTokenizer) -> Backend:
    """Load the model, or greet the server.

    Raises:
        UserError: the backend cannot be had as it is asked for.
    """
    if options.chunk < 1 or options.concurrency < 1 or options.retries < 0 or options.timeout <= 0:
        raise UserError(
            "--chunk, --concurrency and --timeout are above 0, and --retries at least 0; give such numbers."
        )
    if options.backend == "megatron":
        return _open_megatron(options, tokenizer)
    if options.backend == "openai":
        from megatron_ultralong.evaluation.backends.openai_backend import OpenAIBackend

        return OpenAIBackend(options, tokenizer)
    from megatron_ultralong.evaluation.backends.hf_backend import HFBackend

    model = Path(options.model)
    return HFBackend(model, tokenizer, options.dtype, past_context=options.past_context, chunk=options.chunk)


def _open_megatron(options: ModelOptions, tokenizer: ChatTokenizer) -> Backend:
    from megatron_ultralong.config.sections import ParallelConfig
    from megatron_ultralong.evaluation.backends.megatron.megatron_backend import MegatronOptions, open_megatron

    parallel = ParallelConfig(tensor=options.tensor, context=options.context, ulysses=options.ulysses)
    made = MegatronOptions(
        load=Path(options.model),
        hf=options.tokenizer,
        precision=options.dtype,
        parallel=parallel,
        prefill_chunk=options.chunk,
        past_context=options.past_context,
    )
    return open_megatron(made, tokenizer)
