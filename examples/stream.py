"""Show the text as it comes: python examples/stream.py [INVITE]"""

import sys

from swarm import client

invite = sys.argv[1] if len(sys.argv) > 1 else None
pieces = client.stream(
    "Once upon a time", join=invite, max_tokens=48, temperature=0.8, top_p=0.95, seed=7, stop="\n\n"
)
for piece in pieces:
    print(piece, end="", flush=True)
print(f"\n({pieces.generation.finish_reason})")
