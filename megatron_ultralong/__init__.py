"""megatron_ultralong: extend the context of Hugging Face decoders to millions of tokens with Megatron-Core."""

__version__ = "0.1.0"
