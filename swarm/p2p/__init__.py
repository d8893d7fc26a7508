"""The channel's own parts: streams between peers."""
