"""Asks a swarm as a process of its own, on whatever host that runs: an invite, a number, a text.

Prints the new ids as JSON.
"""

import json
import sys

from swarm import client

if __name__ == "__main__":
    invite, count, text = sys.argv[1:]
    sys.stdout.write(
        json.dumps(client.generate(text, join=invite, max_tokens=int(count)).token_ids)
    )
