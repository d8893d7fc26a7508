"""A grammar may end an answer at any id; without one only an id that ends answers may."""

from client.request import Request
from client.session.reply_checks import FrameChecks
from swarm.wire.messages import Token
from swarm.wire.sampling_params import Sampling
from tests.client.scripted import SPEC


def fault_of(ids: list[int], **options: object) -> str:
    sampling = Sampling(max_tokens=4, stop_ids=(2,), **options)  # type: ignore[arg-type]
    checks = FrameChecks(SPEC, Request((10, 20, 30), sampling, 1.0))
    return checks.fault_of(Token("s", 1, bytes(16), 3, ids, "stop"), 1)


def test_a_grammar_ends_an_answer_where_nothing_may_follow() -> None:
    assert "an end" in fault_of([5])
    assert fault_of([5], grammar=("regex", "a")) == ""
    assert fault_of([2]) == ""
    assert "an end" in fault_of([], grammar=("regex", "a"))
