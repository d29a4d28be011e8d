"""Model families as data: which Hugging Face tensors make up which megatron-core parameter. No torch."""
