"""Peers are remembered for two weeks: merged between programs, bounded, and junk is put aside."""

import asyncio
import fcntl
import json
import logging
import multiprocessing
import stat
from pathlib import Path

import pytest

from swarm.p2p import address_book
from swarm.p2p.address_book import (
    ADDRESSES_CAP,
    FILE_CAP,
    FOLDER,
    KEPT_SECONDS,
    PEERS_CAP,
    RENEWED_SECONDS,
    AddressBook,
)
from swarm.testing.memory_network import peer_named

OAK, ELM, OWN = map(peer_named, ("oak", "elm", "own"))
NOW = 1.8e9


class Clock:
    """The wall clock of a test."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def book_in(state: Path, clock: Clock, swarm: str = "swarm-a") -> AddressBook:
    return AddressBook.open(state, swarm, OWN, clock=clock)


def write(book: AddressBook) -> None:
    asyncio.run(book.write())


def file_of(state: Path) -> Path:
    (path,) = (state / FOLDER).glob("*.json")
    return path


def address(number: int, peer: str = OAK) -> str:
    return f"/ip4/10.0.0.{number % 250}/tcp/{4000 + number}/p2p/{peer}"


def test_peers_are_remembered_under_full_addresses(tmp_path: Path, clock: Clock) -> None:
    book = book_in(tmp_path, clock)
    book.note(OAK, ["/ip4/10.0.0.1/tcp/4001"])
    book.note(ELM, [address(2, ELM)])
    write(book)
    found = book_in(tmp_path, clock).addresses()
    assert set(found) == {f"/ip4/10.0.0.1/tcp/4001/p2p/{OAK}", address(2, ELM)}
    assert stat.S_IMODE(file_of(tmp_path).stat().st_mode) == 0o600


def test_each_swarm_has_a_book_of_its_own_whatever_it_is_called(
    tmp_path: Path, clock: Clock
) -> None:
    for swarm, number in (("../../etc", 1), ("swarm-b", 2)):
        book = book_in(tmp_path, clock, swarm)
        book.note(OAK, [address(number)])
        write(book)
    assert book_in(tmp_path, clock, "../../etc").addresses() == (address(1),)
    assert {path.parent for path in tmp_path.rglob("*.json")} == {tmp_path / FOLDER}


def test_we_are_not_our_own_peer(tmp_path: Path, clock: Clock) -> None:
    book = book_in(tmp_path, clock)
    book.note(OWN, [address(1, OWN)])
    book.note_met(OWN, [address(1, OWN)])
    assert book.addresses() == ()


def test_those_met_come_first_and_every_peer_before_second_addresses(
    tmp_path: Path, clock: Clock
) -> None:
    book = book_in(tmp_path, clock)
    book.note_met(OAK, [address(1)])
    book.note(OAK, [address(2)])
    clock.now += 10
    book.note(ELM, [address(3, ELM)])
    assert book.addresses() == (address(1), address(3, ELM), address(2))
    assert book.addresses(without=[OAK]) == (address(3, ELM),)


def test_what_others_wrote_meanwhile_is_kept(tmp_path: Path, clock: Clock) -> None:
    one, other = book_in(tmp_path, clock), book_in(tmp_path, clock)
    one.note(OAK, [address(1)])
    other.note_met(ELM, [address(2, ELM)])
    write(one)
    write(other)
    write(one)
    for book in (one, other, book_in(tmp_path, clock)):
        assert set(book.addresses()) == {address(1), address(2, ELM)}


def test_the_later_of_two_sightings_counts(tmp_path: Path, clock: Clock) -> None:
    one, other = book_in(tmp_path, clock), book_in(tmp_path, clock)
    one.note_met(OAK, [address(1)])
    clock.now += 100
    other.note(OAK, [address(1)])
    write(other)
    write(one)
    rows = json.loads(file_of(tmp_path).read_text())["addresses"]
    assert rows == {address(1): [NOW + 100, NOW]}


def test_who_was_not_seen_for_two_weeks_is_forgotten(tmp_path: Path, clock: Clock) -> None:
    book = book_in(tmp_path, clock)
    book.note(OAK, [address(1)])
    clock.now += KEPT_SECONDS / 2
    book.note(ELM, [address(2, ELM)])
    write(book)
    clock.now += KEPT_SECONDS / 2 + 1
    assert book_in(tmp_path, clock).addresses() == (address(2, ELM),)
    assert book.addresses() == (address(2, ELM),)


def test_a_sighting_of_the_future_counts_as_one_of_now(tmp_path: Path, clock: Clock) -> None:
    clock.now += 10 * KEPT_SECONDS
    book = book_in(tmp_path, clock)
    book.note(OAK, [address(1)])
    write(book)
    clock.now = NOW
    fixed = book_in(tmp_path, clock)
    write(fixed)
    clock.now += KEPT_SECONDS + 1
    assert book_in(tmp_path, clock).addresses() == ()


def test_peers_and_addresses_are_bounded_and_those_met_stay(tmp_path: Path, clock: Clock) -> None:
    book = book_in(tmp_path, clock)
    book.note_met(OAK, [address(1)])
    clock.now += 1000
    for number in range(3 * PEERS_CAP):
        book.note(peer_named(str(number)), [address(number, peer_named(str(number)))])
    for number in range(3 * ADDRESSES_CAP):
        book.note(ELM, [address(number, ELM)])
        book.note_met(ELM, [address(500, ELM)])
    write(book)
    found = book_in(tmp_path, clock).addresses()
    assert len({each.rpartition("/")[2] for each in found}) == PEERS_CAP
    assert set(found[:2]) == {address(500, ELM), address(1)}
    assert sum(each.endswith(ELM) for each in found) == ADDRESSES_CAP


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"\xff\x00nonsense",
        b"[]",
        b'{"swarm": "swarm-a"}',
        b'{"swarm": "swarm-b", "addresses": {}}',
        b'{"swarm": "swarm-a", "addresses": {"/ip4/1.2.3.4/tcp/1": [1]}}',
        b'{"swarm": "swarm-a", "addresses": {"/ip4/1.2.3.4/tcp/1": ["a", true]}}',
        b'{"swarm": "swarm-a", "addresses": {"/ip4/1.2.3.4/tcp/1": [1e999, 1]}}',
        b"[" * 100_000,
        b" " * (FILE_CAP + 1),
    ],
)
def test_a_damaged_file_is_put_aside(tmp_path: Path, clock: Clock, junk: bytes) -> None:
    book = book_in(tmp_path, clock)
    book.note(OAK, [address(1)])
    write(book)
    path = file_of(tmp_path)
    path.write_bytes(junk)
    assert book_in(tmp_path, clock).addresses() == ()
    assert path.with_suffix(".damaged").read_bytes() == junk
    write(book)
    assert book_in(tmp_path, clock).addresses() == (address(1),)


def test_a_truncated_file_is_put_aside(tmp_path: Path, clock: Clock) -> None:
    book = book_in(tmp_path, clock)
    book.note(OAK, [address(1)])
    write(book)
    path = file_of(tmp_path)
    path.write_bytes(path.read_bytes()[:-5])
    assert book_in(tmp_path, clock).addresses() == ()


@pytest.mark.parametrize("strange", ["", "nonsense", "/ip4/1.2.3.4 /tcp/1", "/" + "x" * 400])
def test_what_is_no_address_is_not_taken(tmp_path: Path, clock: Clock, strange: str) -> None:
    book = book_in(tmp_path, clock)
    book.note(OAK, [strange])
    book.note("no peer", [address(1, "no peer")])
    assert book.addresses() == ()


def test_only_what_is_new_is_worth_a_write(tmp_path: Path, clock: Clock) -> None:
    book = book_in(tmp_path, clock)
    assert not book.is_due
    book.note(OAK, [address(1)])
    assert book.is_due
    write(book)
    clock.now += RENEWED_SECONDS
    book.note(OAK, [address(1)])
    assert not book.is_due
    book.note_met(OAK, [address(1)])
    assert book.is_due
    write(book)
    clock.now += RENEWED_SECONDS + 1
    book.note(OAK, [address(1)])
    assert book.is_due


def test_a_folder_that_cannot_be_written_is_no_failure(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FOLDER).write_text("a file, where a folder should be")
    book = book_in(tmp_path, clock)
    book.note(OAK, [address(1)])
    write(book)
    write(book)
    assert book.addresses() == (address(1),)
    assert [each.levelno for each in caplog.records].count(logging.WARNING) == 1


def test_nobody_writes_while_another_program_does(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(address_book, "LOCK_SECONDS", 0.0)
    book = book_in(tmp_path, clock)
    book.note(OAK, [address(1)])
    write(book)
    book.note(ELM, [address(2, ELM)])
    with file_of(tmp_path).with_suffix(".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        write(book)
        assert book_in(tmp_path, clock).addresses() == (address(1),)
        assert book.is_due
    write(book)
    assert len(book_in(tmp_path, clock).addresses()) == 2


def test_two_processes_write_at_once_and_nothing_is_lost(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_often, args=(tmp_path, who)) for who in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    assert len(AddressBook.open(tmp_path, "swarm-a").addresses()) == 2 * ROUNDS


ROUNDS = 20


def _write_often(state: Path, who: int) -> None:
    book = AddressBook.open(state, "swarm-a")
    for number in range(ROUNDS):
        peer = peer_named(f"{who} {number}")
        book.note(peer, [address(number, peer)])
        asyncio.run(book.write())
