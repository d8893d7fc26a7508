"""The commands `generate`, `chat`, `status` and `demo`, and what they draw."""
