"""Names of the files in a model's repository: which are small and needed by everybody."""

from fnmatch import fnmatch

from swarm.checkpoint.safetensors_headers import INDEX

PAPERS = (  # what a client needs, and a node besides its weights
    *("config.json", "generation_config.json", "tokenizer*", "*.model", "vocab.*", "merges.txt"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template*", INDEX),
)


def is_paper(name: str) -> bool:
    """Whether a file of a repository is small and needed by everybody."""
    return "/" not in name and any(fnmatch(name, pattern) for pattern in PAPERS)
