"""Text and chats to token ids: one tokenizer, its fast and reference encoders, exact cuts, chat templates."""
