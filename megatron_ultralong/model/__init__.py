"""What the model is made of: exact RoPE scaling, the rotary module, megatron-core's GPTModel, the loss."""
