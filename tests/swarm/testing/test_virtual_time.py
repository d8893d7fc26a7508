"""Virtual time: hours pass in no time, and every clock of the process shows it."""

import asyncio
import time

import pytest

from swarm.testing.virtual_time import EPOCH, SKEW_SECONDS, VirtualLoop, run_virtually
from swarm.trust.network_clock import CLOCK


def test_an_hour_of_sleep_takes_no_time_and_shows_on_every_clock() -> None:
    async def story() -> tuple[float, float]:
        before = time.monotonic(), CLOCK.now()
        await asyncio.sleep(3600.0)
        return time.monotonic() - before[0], CLOCK.now() - before[1]

    began = time.perf_counter()
    assert run_virtually(VirtualLoop(), story()) == pytest.approx((3600.0, 3600.0))
    assert time.perf_counter() - began < 60.0


def test_the_clocks_are_right_again_afterwards() -> None:
    run_virtually(VirtualLoop(), asyncio.sleep(1.0))
    assert abs(CLOCK.now() - time.time()) < 1e6 < CLOCK.now() - EPOCH


def test_each_task_may_have_a_wall_clock_that_is_wrong_in_its_own_way() -> None:
    async def skewed() -> float:
        SKEW_SECONDS.set(2.0)
        return CLOCK.now()

    async def story() -> float:
        return await asyncio.create_task(skewed()) - CLOCK.now()

    assert run_virtually(VirtualLoop(), story()) == pytest.approx(2.0)


def test_what_should_run_in_a_thread_takes_a_second_and_its_errors_arrive() -> None:
    async def story() -> float:
        before = time.monotonic()
        assert await asyncio.to_thread(lambda: 7) == 7
        with pytest.raises(KeyError):
            await asyncio.to_thread(dict[str, int]().__getitem__, "nothing")
        return time.monotonic() - before

    loop = VirtualLoop()
    assert run_virtually(loop, story()) == pytest.approx(2.0)
    assert loop.thread_calls == 2


def test_a_wait_that_no_time_ends_is_said_instead_of_hanging() -> None:
    async def story() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="no time brings"):
        run_virtually(VirtualLoop(), story())


def test_calls_are_made_in_order_of_time_and_those_that_were_cancelled_never() -> None:
    made: list[int] = []

    async def story() -> None:
        loop = asyncio.get_running_loop()
        calls = [loop.call_later(5000.0 - at, made.append, at) for at in range(5000)]
        for call in calls[::2]:
            call.cancel()
        assert calls[0].cancelled()
        await asyncio.sleep(5000.0)

    run_virtually(VirtualLoop(), story())
    assert made == list(range(4999, 0, -2))
