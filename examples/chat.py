"""Hold a conversation: python examples/chat.py [INVITE], then type; Ctrl-D ends."""

import asyncio
import sys

from swarm import client


async def main() -> None:
    """Each answer joins the conversation, so that the model knows what was said."""
    messages: list[dict[str, str]] = []
    async with client.Client(sys.argv[1] if len(sys.argv) > 1 else None) as swarm:
        for line in map(str.strip, sys.stdin):
            messages.append({"role": "user", "content": line})
            pieces = swarm.stream(messages=messages, max_tokens=64)
            async for piece in pieces:
                print(piece, end="", flush=True)
            print()
            messages.append({"role": "assistant", "content": str(pieces.generation)})


asyncio.run(main())
