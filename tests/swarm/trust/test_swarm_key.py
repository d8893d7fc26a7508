"""SwarmKey: what follows from the key of a private swarm, and for whom."""

import time

from swarm.trust.swarm_key import SwarmKey, _stretched

KEY = SwarmKey("home-abc", "secret")


def test_an_open_swarm_seals_nothing_and_proves_nothing() -> None:
    key = SwarmKey("home-abc")
    assert key.seal(b"data", b"") == b"data" == key.unseal(b"data", b"else")
    assert key.proof("stream", "a", "b") == b""
    assert key.name == "home-abc"


def test_only_the_key_and_the_context_open_a_seal() -> None:
    sealed = KEY.seal(b"data", b"here")
    assert len(sealed) == len(b"data") + KEY.overhead_bytes
    assert KEY.unseal(sealed, b"here") == b"data"
    assert KEY.unseal(sealed, b"there") is None
    assert KEY.unseal(sealed[:-1], b"here") is None
    assert KEY.unseal(b"", b"here") is None
    for other in (SwarmKey("home-abc", "Secret"), SwarmKey("home-xyz", "secret")):
        assert other.unseal(sealed, b"here") is None


def test_equal_data_is_sealed_differently() -> None:
    assert KEY.seal(b"data", b"") != KEY.seal(b"data", b"")


def test_a_proof_is_for_one_purpose_and_one_way() -> None:
    proofs = {
        KEY.proof(purpose, *pair)
        for purpose in ("stream", "dht question")
        for pair in (("a", "b"), ("b", "a"), ("a", "c"))
    }
    assert len(proofs) == 6


def test_the_name_of_a_private_swarm_says_nothing() -> None:
    assert "home" not in KEY.name
    assert KEY.name != SwarmKey("home-abc", "other").name
    assert KEY.name == SwarmKey("home-abc", "secret").name


def test_trying_a_word_costs_more_than_a_hash() -> None:
    """A million words took a second (HMAC over known text); now each takes milliseconds."""
    start = time.process_time()
    _stretched.__wrapped__("home-abc", "word")
    assert time.process_time() - start > 0.01
