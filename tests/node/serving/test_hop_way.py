"""HopWay: what is told again through clients, in order, and when the direct way is taken again."""

from node.serving.hop_way import (
    FIRST_PATIENCE_SECONDS,
    HELD_BYTES,
    IDLE_SECONDS,
    PATIENCE_SECONDS,
    RETRY_CAP_SECONDS,
    RETRY_SECONDS,
    HopWay,
)
from swarm.wire.messages import Step


def step(position: int, *, session: str = "s", sample: bool = False, size: int = 4) -> Step:
    body = bytes(size)
    return Step(session, 1, b"k" * 16, 1, position, 1, sample, "f32", body=body)


def sent(way: HopWay, *steps: Step) -> None:
    for each in steps:
        assert way.takes("client", each)
        way.hold("client", each)


def test_what_is_not_confirmed_is_taken_back_in_order() -> None:
    way = HopWay()
    steps = [step(at) for at in range(4)]
    sent(way, *steps)
    way.confirm(2)
    assert way.cut(0.0, is_tried=True) == [("client", each) for each in steps[2:]]
    assert way.cut(0.0, is_tried=True) == []


def test_a_session_goes_back_to_the_direct_way_only_behind_a_step_that_samples() -> None:
    way = HopWay()
    sent(way, step(0))
    way.cut(0.0, is_tried=True)
    assert not way.takes("client", step(1))
    way.confirm(way.number)
    assert not way.takes("client", step(2))  # the one before may still be with the client
    assert way.takes("client", step(0, session="another"))
    assert not way.takes("client", step(3, sample=True))
    assert way.takes("client", step(4, sample=True))


def test_a_cut_way_is_tried_again_ever_later_while_steps_go_there() -> None:
    way = HopWay(used_at=0.0)
    way.cut(10.0, is_tried=False)
    assert way.retry_at == 10.0
    pauses = []
    for _ in range(6):
        way.cut(10.0, is_tried=True)
        pauses.append(way.retry_at - 10.0)
    assert pauses == [RETRY_SECONDS * factor for factor in (1, 2, 4, 8)] + 2 * [RETRY_CAP_SECONDS]
    assert way.is_wanted(IDLE_SECONDS - 1)
    assert not way.is_wanted(IDLE_SECONDS)


def test_patience_grows_with_the_round_trip_and_with_what_is_under_way() -> None:
    way = HopWay()
    assert way.patience_seconds(None) == FIRST_PATIENCE_SECONDS
    assert way.patience_seconds(0.001) == PATIENCE_SECONDS
    assert way.patience_seconds(2.0) == 6.0
    sent(way, step(0, size=500_000))
    assert way.patience_seconds(0.001) == PATIENCE_SECONDS + 1.0


def test_what_is_held_is_bounded() -> None:
    way = HopWay()
    sent(way, *(step(at, size=HELD_BYTES // 4) for at in range(9)))
    assert way.held_bytes <= HELD_BYTES
    assert len(way.unconfirmed) == 4
