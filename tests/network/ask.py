"""Asks a swarm as a process of its own, on whatever host that runs: an invite, a number, a text.

Prints a line for every piece of the answer as it comes, and the new ids as JSON in the end.
"""

import json
import sys

from swarm import client


def ask(invite: str, count: str, text: str) -> None:
    """Print the answer while it comes."""
    answer = client.stream(text, join=invite, max_tokens=int(count))
    for piece in answer:
        _print(piece)
    _print(answer.generation.token_ids)


def _print(words: object) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    ask(*sys.argv[1:])
