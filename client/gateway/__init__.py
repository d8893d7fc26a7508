"""The HTTP API that the clients people already have speak: OpenAI's, Anthropic's and Ollama's."""
