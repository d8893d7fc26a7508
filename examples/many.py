"""Ask many things at once over one connection: python examples/many.py [INVITE]"""

import asyncio
import sys

from swarm import client

PROMPTS = ["Once upon a time", "The planner", "A swarm is", "Long ago", "Water", "The river"]


async def main() -> None:
    """The swarm computes all of these in shared batches."""
    async with client.Client(sys.argv[1] if len(sys.argv) > 1 else None) as swarm:
        asked = [swarm.generate(prompt, max_tokens=24) for prompt in PROMPTS]
        for prompt, generation in zip(PROMPTS, await asyncio.gather(*asked), strict=True):
            print(f"{prompt}{generation}")


asyncio.run(main())
