"""Text to ids and back: tokenizer, chat templates, and text as it streams."""
