"""How many rows of a prompt go into a step."""

from node.worker.batching import LEAST_TOKENS, STEP_SECONDS, ChunkSize
from node.worker.scheduler import CHUNK_TOKENS


def test_a_device_that_nobody_knows_starts_with_few_rows() -> None:
    assert ChunkSize().tokens == LEAST_TOKENS


def test_a_fast_device_takes_whole_chunks_and_a_slow_one_few_rows() -> None:
    fast, slow = ChunkSize(), ChunkSize()
    fast.ran(64, 64 * STEP_SECONDS / 1000)
    slow.ran(64, 1.0)
    assert (fast.tokens, slow.tokens) == (CHUNK_TOKENS, LEAST_TOKENS)


def test_the_size_follows_the_device_and_keeps_its_steps_short() -> None:
    size = ChunkSize()
    size.ran(64, 1.0)
    for _ in range(40):
        size.ran(128, 128 * STEP_SECONDS / 150)
    assert size.tokens == 128
