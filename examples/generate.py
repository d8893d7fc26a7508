"""Ask a swarm once: python examples/generate.py [INVITE]"""

import sys

from swarm import client

invite = sys.argv[1] if len(sys.argv) > 1 else None  # None: $SWARM_INVITE, or the last one joined
generation = client.generate("Once upon a time", join=invite, max_tokens=32)

print(generation)
print(f"{len(generation.token_ids)} tokens, {generation.tokens_per_second:.1f} a second, over")
for stage in generation.route:
    print(f"  layers [{stage.start},{stage.end}) on {len(stage.members)} device(s)")
