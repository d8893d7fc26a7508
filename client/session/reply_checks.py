"""Frame checks: what the messages of a route's stages may hold, before a session acts on them."""

from dataclasses import dataclass

from client.request import Request
from swarm.errors import RemoteProtocolError
from swarm.model_spec import ModelSpec
from swarm.wire.messages import CHUNK_CAP, HOP_FIGURES, Message, Step, Token
from swarm.wire.sampling_params import MOST_SPECULATED
from swarm.wire.token_logprobs import TokenLogprobs, logprobs_of_bytes

LONGEST_HOP_MICROSECONDS = 3_600_000_000
FINISHES = ("", "stop", "length")
DTYPES = frozenset({"i32", "f32", "bf16", "f16", "i8"})
WIDEST_VALUE_BYTES = 4
SCALE_BYTES = 4  # of a row that travels as int8


@dataclass(frozen=True, slots=True)
class FrameChecks:
    """What can be true of a message, for one request and one model; each says what is wrong."""

    spec: ModelSpec
    request: Request

    def fault_of(self, message: Message, stages: int) -> str:
        """What makes a message of a route with so many stages impossible; "" if nothing does."""
        if isinstance(message, Step):
            return self._fault_of_step(message, stages)
        top = self.request.sampling.top_of(self.spec.vocab)
        if len(message.body) and (top is None or not isinstance(message, Token)):
            return "a body where none belongs"
        return self._fault_of_token(message, stages) if isinstance(message, Token) else ""

    def logprobs_of(self, token: Token) -> tuple[TokenLogprobs, ...]:
        """The log-probabilities that came with ids, if they were asked for.

        Raises RemoteProtocolError.
        """
        top = self.request.sampling.top_of(self.spec.vocab)
        return () if top is None else logprobs_of_bytes(token.body, token.ids, top, self.spec.vocab)

    def _fault_of_step(self, step: Step, stages: int) -> str:
        if step.stage >= stages:
            return "a step for a stage that the route does not have"
        if step.dtype not in DTYPES:
            return "rows of a dtype that does not exist"
        if not 0 < step.tokens <= CHUNK_CAP:
            return f"a step of {step.tokens} tokens"
        if len(step.drafts) > MOST_SPECULATED:
            return f"{len(step.drafts)} guessed ids"
        row_bytes = SCALE_BYTES + WIDEST_VALUE_BYTES * self.spec.hidden
        if len(step.body) > step.tokens * row_bytes:
            return f"{len(step.body)} bytes for {step.tokens} tokens"
        return _fault_of_hops(step.hops, stages)

    def _fault_of_token(self, token: Token, stages: int) -> str:
        if any(each >= self.spec.vocab for each in token.ids):
            return "an id that the vocabulary does not have"
        if not self._is_possible_place(token):
            return f"{len(token.ids)} ids at position {token.position}"
        if token.drafted > MOST_SPECULATED or len(token.ids) > 1 + token.drafted:
            return f"{len(token.ids)} ids for {token.drafted} guessed ones"
        if not self._is_possible_finish(token):
            return f"an end ({token.finish[:20]!r}) that it cannot have come to"
        try:
            self.logprobs_of(token)
        except RemoteProtocolError as error:
            return str(error)
        return _fault_of_hops(token.hops, stages)

    def _is_possible_place(self, token: Token) -> bool:
        first = len(self.request.ids)
        return first <= token.position <= token.position + len(token.ids) <= self.request.capacity

    def _is_possible_finish(self, token: Token) -> bool:
        if token.finish == "length":
            return token.position + len(token.ids) == self.request.capacity
        sampling = self.request.sampling
        if token.finish == "stop" and not sampling.stop:
            return bool(token.ids) and bool(sampling.grammar or token.ids[-1] in sampling.stop_ids)
        return token.finish in FINISHES


def _fault_of_hops(hops: list[list[int]], stages: int) -> str:
    is_plain = all(len(hop) == HOP_FIGURES and max(hop) <= LONGEST_HOP_MICROSECONDS for hop in hops)
    return "" if is_plain and len(hops) <= stages else "times of hops that cannot be"
