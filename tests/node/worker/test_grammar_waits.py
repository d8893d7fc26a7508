"""Sessions wait for their grammar beside the computing, and for nothing else."""

import threading
from queue import Empty, SimpleQueue
from typing import cast

import pytest

from node.engine.grammar import GrammarCompiler
from node.worker.grammar_waits import GrammarWaits
from node.worker.messages import Release, Reserve
from node.worker.scheduler import Arrived
from swarm.errors import EngineError
from swarm.wire.grammars import Grammar
from swarm.wire.sampling_params import Sampling
from tests.node.worker.shards import FOLDER

SECONDS = 20.0
PLAIN = Arrived(Reserve("plain", 64, 0, Sampling(temperature=0.5).to_map()), 1.0)


def asking(session: str, text: str = "a") -> Arrived:
    return Arrived(Reserve(session, 64, 0, Sampling(grammar=("regex", text)).to_map()), 1.0)


def released(session: str) -> Arrived:
    return Arrived(Release(session), 2.0)


class SlowCompiler:
    """Compiles nothing, and takes as long as a test likes."""

    def __init__(self) -> None:
        self.has_begun, self.may_end = threading.Event(), threading.Event()
        self.seen: list[str] = []
        self.failure: Exception | None = None

    def compile(self, grammar: Grammar) -> None:
        self.has_begun.set()
        assert self.may_end.wait(SECONDS)
        self.seen.append(grammar[1])
        if self.failure:
            raise self.failure


class Stand:
    """Waits with a slow compiler, and what they have given."""

    def __init__(self) -> None:
        self.given: SimpleQueue[Arrived] = SimpleQueue()
        self.compiler = SlowCompiler()
        self.waits = GrammarWaits(self.given.put)
        self.waits.serve(cast("GrammarCompiler", self.compiler))

    def begun(self, session: str, text: str = "a") -> Arrived:
        """A session whose grammar is being compiled."""
        arrived = asking(session, text)
        assert self.waits.holds(arrived)
        assert self.compiler.has_begun.wait(SECONDS)
        return arrived


@pytest.fixture
def stand() -> Stand:
    return Stand()


def test_a_session_is_given_on_when_its_grammar_is_compiled(stand: Stand) -> None:
    arrived = stand.begun("s", "abc")
    assert stand.given.empty()
    stand.compiler.may_end.set()
    assert stand.given.get(timeout=SECONDS) is arrived
    assert stand.compiler.seen == ["abc"]


def test_others_are_not_held(stand: Stand) -> None:
    stand.begun("s")
    assert not stand.waits.holds(PLAIN)
    assert not stand.waits.holds(released("plain"))


def test_a_session_that_is_released_meanwhile_never_opens(stand: Stand) -> None:
    stand.begun("first")
    assert stand.waits.holds(asking("second"))
    assert stand.waits.holds(released("first"))
    assert not stand.waits.holds(released("first"))
    stand.compiler.may_end.set()
    order = stand.given.get(timeout=SECONDS).order
    assert isinstance(order, Reserve)
    assert order.session == "second"
    assert stand.given.empty()


def test_what_waits_for_a_shard_that_is_given_up_is_forgotten(stand: Stand) -> None:
    stand.begun("s")
    stand.waits.clear()
    stand.compiler.may_end.set()
    assert stand.waits.holds(asking("later"))
    order = stand.given.get(timeout=SECONDS).order
    assert isinstance(order, Reserve)
    assert order.session == "later"


@pytest.mark.parametrize("failure", [EngineError("wrong"), RuntimeError("a bug of ours")])
def test_one_that_cannot_be_compiled_is_given_on_to_be_refused(
    stand: Stand, failure: Exception
) -> None:
    stand.compiler.failure = failure
    stand.begun("s")
    stand.compiler.may_end.set()
    assert stand.given.get(timeout=SECONDS).order is not None
    assert stand.waits.holds(asking("next"))
    assert stand.given.get(timeout=SECONDS).order is not None


def test_what_one_thread_compiles_another_one_uses() -> None:
    compiler = GrammarCompiler(FOLDER, 512)
    given: SimpleQueue[Arrived] = SimpleQueue()
    waits = GrammarWaits(given.put)
    waits.serve(compiler)
    assert waits.holds(asking("s", "here"))
    given.get(timeout=SECONDS)
    assert compiler._compiled.keys() == {("regex", "here")}
    state = compiler.state_of(Sampling(grammar=("regex", "here"), stop_ids=(0,)))
    assert state
    assert not state.is_over
    with pytest.raises(Empty):
        given.get_nowait()
