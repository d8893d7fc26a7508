"""What scripted stages say of log-probabilities: kept in order, and refused where it cannot be."""

import numpy as np
import pytest

from client.request import Request
from client.session.reply_checks import FrameChecks
from client.session.transcript import Transcript
from swarm.wire.messages import Message, Token
from swarm.wire.sampling_params import Sampling
from swarm.wire.token_logprobs import TokenLogprobs, logprobs_to_bytes
from tests.client.scripted import SPEC

PROMPT = (10, 20, 30)
KEY = bytes(16)
BODY = logprobs_to_bytes(np.array([[-1.0, -0.5]], np.float32), np.array([[7]]))
TOLD = (TokenLogprobs(5, -1.0, ((7, -0.5),)),)


def checks(top: int | None) -> FrameChecks:
    return FrameChecks(SPEC, Request(PROMPT, Sampling(max_tokens=4, top_logprobs=top), 1.0))


def token(body: bytes) -> Token:
    return Token("s", 1, KEY, 3, [5], body=body)


def test_what_was_asked_for_is_read() -> None:
    assert checks(1).fault_of(token(BODY), 1) == ""
    assert checks(1).logprobs_of(token(BODY)) == TOLD
    assert checks(None).logprobs_of(token(b"")) == ()


@pytest.mark.parametrize(
    ("top", "message", "fault"),
    [
        (None, token(BODY), "a body where none belongs"),
        (1, token(b""), "0 bytes of log-probabilities"),
        (2, token(BODY), "12 bytes of log-probabilities"),
        (1, token(b"\xff" * 12), "log-probabilities that cannot be"),
    ],
)
def test_what_cannot_be_is_a_fault(top: int | None, message: Message, fault: str) -> None:
    assert checks(top).fault_of(message, 1) == fault


def told(*ids: int) -> list[TokenLogprobs]:
    return [TokenLogprobs(each, -float(each)) for each in ids]


def test_they_stay_with_their_ids_however_these_come() -> None:
    transcript = Transcript(PROMPT, 9)
    transcript.add(5, [3, 4], "", told(3, 4))
    assert transcript.logprobs == []
    transcript.add(3, [1, 2], "", told(1, 2))
    transcript.add(3, [1, 2, 3], "", told(8, 8, 8))
    assert transcript.generated == [1, 2, 3, 4]
    assert transcript.logprobs == told(1, 2, 3, 4)


def test_those_behind_a_stop_string_go_with_their_ids() -> None:
    transcript = Transcript(PROMPT, 9)
    transcript.add(3, [1, 2, 3], "", told(1, 2, 3))
    next(transcript.unread())
    transcript.stop()
    assert (transcript.generated, transcript.logprobs) == ([1], told(1))


def test_those_of_a_route_that_was_left_are_forgotten_with_their_ids() -> None:
    transcript = Transcript(PROMPT, 9)
    transcript.add(4, [9], "", told(9))
    transcript.begin_epoch()
    transcript.add(3, [1, 2], "", told(1, 2))
    assert transcript.logprobs == told(1, 2)
