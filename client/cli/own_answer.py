"""OwnAnswer: a question that the node on this machine asks for us, over the network that it has."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any, cast

from client.generation import Generation, StageTiming, Stopwatch
from client.request import LocalModel, Question, Request
from client.text.detokenizer import Detokenizer
from client.text.tokenizer import Tokenizer, read_stop_ids, read_tokenizer
from swarm.commands.control_socket import LocalNode, local_nodes
from swarm.errors import BadModel, SwarmError, Unreachable
from swarm.model_spec import ModelSpec
from swarm.records import Advert, record_of_map
from swarm.wire.token_ids import ids_to_bytes

MODEL_SECONDS = 3.0  # for a node to say what it serves

logger = logging.getLogger(__name__)


class Pieces:
    """Shows an answer as it comes; one that is begun again goes on where the first one ended."""

    def __init__(self, show: Callable[[str], None] | None) -> None:
        self._show = show
        self._shown = 0  # characters
        self._again = 0  # of those that have come for the second time

    def __call__(self, piece: str) -> None:
        """Show what is new of the next piece."""
        new = piece[max(self._shown - self._again, 0) :]
        self._again += len(piece)
        self._shown = max(self._shown, self._again)
        if new and self._show is not None:
            self._show(new)

    def begin_again(self) -> None:
        """The same answer comes once more."""
        self._again = 0


class OwnModel:
    """What a node of ours serves, and how to ask it."""

    def __init__(self, node: LocalNode, local: LocalModel) -> None:
        self._node, self._local = node, local

    def answer(self, question: Question, pieces: Pieces) -> Generation | None:
        """The whole answer; None if the node cannot give it, and another way is open.

        Raises SwarmError: what is wrong with the question, and what the swarm says to it.
        """
        request = self._local.request(question)
        reading = Reading(request, self._local.tokenizer)
        try:
            with self._node.ask_for_all("generate", **self._words(request)) as (answers, stop):
                for piece in reading.pieces(answers, stop):
                    pieces(piece)
            return reading.generation()
        except Unreachable as error:
            sampling = request.sampling
            if reading.has_begun and not sampling.is_greedy and sampling.seed is None:
                raise  # another answer would not go on like this one
            logger.info("%s does not answer to the end: %s", self._node.folder.name, error)
            pieces.begin_again()
            return None

    def _words(self, request: Request) -> dict[str, object]:
        return {
            "model": self._local.spec.digest,
            "ids": ids_to_bytes(list(request.ids)),
            "sampling": request.sampling.for_stages(),
            "timeout": request.timeout_seconds,
        }


class Reading:
    """Reads what a node answers: ids one after the other, and what came of them at last."""

    def __init__(self, request: Request, tokenizer: Tokenizer) -> None:
        self._request = request
        self._watch = Stopwatch(perf_counter())
        self._detokenizer = Detokenizer(tokenizer.text_of, request.sampling.stop, request.ids)
        self._ids: list[int] = []
        self._end: Mapping[str, Any] | None = None

    @property
    def has_begun(self) -> bool:
        """Whether a part of the answer is here."""
        return bool(self._ids)

    def pieces(self, answers: Iterator[dict[str, Any]], stop: Callable[[], None]) -> Iterator[str]:
        """The text that is safe to show, as it comes; raises SwarmError."""
        for answer in answers:
            self._end = answer.get("end", self._end)
            if not self._detokenizer.stopped:
                yield from self._take(answer.get("ids", []))
                if self._detokenizer.stopped:
                    stop()
        yield self._detokenizer.finish()

    def _take(self, ids: list[int]) -> Iterator[str]:
        for token in ids:
            self._watch.token(perf_counter())
            self._ids.append(token)
            if token not in self._request.sampling.stop_ids:
                yield self._detokenizer.push([token])

    def generation(self) -> Generation:
        """The whole; raises Unreachable if the node ended before it."""
        try:
            if self._end is not None:
                return self._generation_of(self._end)
        except (LookupError, TypeError, ValueError) as error:
            logger.info("what a node tells of an answer is not understood: %s", error)
        raise Unreachable("The node on this machine ended before the answer did.", "Ask again.")

    def _generation_of(self, end: Mapping[str, Any]) -> Generation:
        route = cast("Advert", record_of_map(Advert, end["route"]))
        return Generation(
            text=self._detokenizer.text,
            token_ids=tuple(self._ids),
            finish_reason="stop" if self._detokenizer.stopped else str(end["finish"]),
            ttft_seconds=self._watch.ttft_seconds,
            tokens_per_second=self._watch.tokens_per_second,
            route=tuple(route.stages),
            timings=tuple(StageTiming(*timing) for timing in end["timings"]),
            replays=int(end["replays"]),
            drafted=int(end["drafted"]),
            accepted=int(end["accepted"]),
            prompt_tokens=len(self._request.ids),
            cached_tokens=int(end["cached_tokens"]),
        )


def own_model(state: Path, swarm: str, *, raw_bytes: bool = False) -> OwnModel | None:
    """The model of a swarm, if a node of this state folder serves it and takes questions."""
    for node in local_nodes(state):
        if facts := _facts_of(node, swarm):
            with suppress(BadModel, LookupError, TypeError, ValueError):
                return OwnModel(node, _local_of(facts, raw_bytes=raw_bytes))
    return None


def _facts_of(node: LocalNode, swarm: str) -> dict[str, Any]:
    """What a node says of its model; empty if it is of another swarm or version."""
    try:
        facts = node.ask("model", timeout_seconds=MODEL_SECONDS)
    except SwarmError as error:
        logger.info("%s takes no questions: %s", node.folder.name, error)
        return {}
    return facts if facts.get("swarm") == swarm else {}


def _local_of(facts: Mapping[str, Any], *, raw_bytes: bool) -> LocalModel:
    spec, folder = ModelSpec(**facts["spec"]), Path(facts["folder"])
    tokenizer = read_tokenizer(folder, spec, raw_bytes=raw_bytes)
    return LocalModel(spec, tokenizer, read_stop_ids(folder))
