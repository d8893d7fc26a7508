"""A swarm whose links carry int8: it answers, relays, and replays over a link of another form."""

import asyncio

from node.serving.activation_format import ActivationFormat
from tests.whole.memory_swarm import MemorySwarm
from tests.whole.overheard import PROMPT, Act, answer, nothing, overhear
from tests.whole.reference_model import expected

TOKENS = 24


def generate(wishes: dict[str, str], act: Act = nothing) -> tuple[list[int], list[str]]:
    """The tokens over two stages, each twice over, and the dtype of every STEP in order."""
    dtypes: list[str] = []

    async def whole() -> list[int]:
        swarm = MemorySwarm()
        for name, wish in wishes.items():
            for part, span in (("first", (0, 3)), ("last", (3, 8))):
                stage = await swarm.add(f"{name} {part}", *span)
                stage.server._use_int8 = ActivationFormat(wish, 64, lambda _peer: 1e9).use_int8
                overhear(swarm, stage, dtypes)
        return await answer(swarm, act, max_tokens=TOKENS, speculate=0)

    return asyncio.run(whole()), dtypes


def test_quick_links_carry_full_rows_and_the_tokens_are_exact() -> None:
    ids, dtypes = generate({"a": "auto", "b": "auto"})
    assert ids == expected(PROMPT, TOKENS)
    assert set(dtypes) == {"i32", "f32"}


def test_int8_links_carry_every_hidden_row_and_the_tokens_agree() -> None:
    ids, dtypes = generate({"a": "int8", "b": "int8"})
    assert set(dtypes) == {"i32", "i8"}
    assert ids == expected(PROMPT, TOKENS)  # swarm-tiny is sure enough of these


def test_the_client_relays_int8_rows_as_they_are() -> None:
    def cut(swarm: MemorySwarm) -> None:
        for first in ("a first", "b first"):
            for last in ("a last", "b last"):
                swarm.world.cut(swarm.stages[first].peer, swarm.stages[last].peer)

    ids, dtypes = generate({"a": "int8", "b": "int8"}, cut)
    assert set(dtypes) == {"i32", "i8"}
    assert ids == expected(PROMPT, TOKENS)


def test_a_replay_may_go_on_in_another_form() -> None:
    def kill(swarm: MemorySwarm) -> None:
        swarm.world.kill(swarm.stages.pop("a first").peer)

    ids, dtypes = generate({"a": "int8", "b": "full"}, kill)
    hidden = [dtype for dtype in dtypes if dtype != "i32"]
    assert hidden == sorted(hidden, key=["i8", "f32"].index)
    assert set(hidden) == {"i8", "f32"}
    assert ids == expected(PROMPT, TOKENS)
