"""Sockets of a group: mutual TLS with pinned certificates, over real sockets on loopback."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

from node.worker.group_handshakes import STRANGERS_CAP
from node.worker.group_sockets import GroupLink, GroupListener
from node.worker.messages import Rank
from swarm.errors import Deadline, PeerError, PeerLost
from swarm.wire.framing import BODY_CAP, PREFIX

HOST = "127.0.0.1"
Links = dict[int, dict[int, ssl.SSLSocket]]


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


@pytest.fixture
def listen() -> Iterator[Callable[[], GroupListener]]:
    """Open listeners that are closed at the end of the test."""
    with ExitStack() as stack:

        def one() -> GroupListener:
            listener = GroupListener(HOST)
            stack.callback(listener.close)
            return listener

        yield one


def rank_of(listener: GroupListener, certificate: bytes | None = None) -> Rank:
    return Rank((HOST,), listener.port, certificate or listener.certificate)


def connect_all(pool: ThreadPoolExecutor, listeners: Sequence[GroupListener]) -> Links:
    ranks = [rank_of(listener) for listener in listeners]
    futures = [pool.submit(each.connect, ranks, own) for own, each in enumerate(listeners)]
    return {own: future.result(20) for own, future in enumerate(futures)}


def close_all(links: Links) -> None:
    for sockets in links.values():
        for each in sockets.values():
            each.close()


def test_three_ranks_are_connected_pair_by_pair_with_the_right_ones(
    pool: ThreadPoolExecutor, listen: Callable[[], GroupListener]
) -> None:
    listeners = [listen() for _ in range(3)]
    links = connect_all(pool, listeners)
    for own, sockets in links.items():
        assert set(sockets) == {0, 1, 2} - {own}
        for other, each in sockets.items():
            assert each.getpeercert(binary_form=True) == listeners[other].certificate
            assert each.version() == "TLSv1.3"
    close_all(links)


def test_the_leader_tells_all_and_each_rank_answers(
    pool: ThreadPoolExecutor, listen: Callable[[], GroupListener]
) -> None:
    links = connect_all(pool, [listen() for _ in range(3)])
    leader, one, two = (GroupLink(links[own]) for own in range(3))
    blob = bytes(range(256)) * 4096  # more than a socket buffer holds
    sent = pool.submit(leader.broadcast, blob)
    assert one.receive(0) == two.receive(0, idle=True) == blob
    sent.result(5)
    one.send(0, b"from one")
    two.send(0, b"")
    assert leader.receive(1) == b"from one"
    assert leader.receive(2) == b""
    close_all(links)


def test_closing_wakes_a_rank_that_waits_for_its_leader(
    pool: ThreadPoolExecutor, listen: Callable[[], GroupListener]
) -> None:
    links = connect_all(pool, [listen(), listen()])
    follower = GroupLink(links[1])
    waiting: Future[bytes] = pool.submit(follower.receive, 0, idle=True)
    follower.close()
    with pytest.raises(PeerLost):
        waiting.result(5)
    leader = GroupLink(links[0])
    with pytest.raises(PeerLost):
        leader.receive(1)
    follower.close()
    leader.close()
    with pytest.raises(PeerLost):
        leader.broadcast(b"anybody?")
    close_all(links)


def test_a_blob_above_the_cap_is_refused_before_it_is_read(
    pool: ThreadPoolExecutor, listen: Callable[[], GroupListener]
) -> None:
    links = connect_all(pool, [listen(), listen()])
    links[0][1].sendall(PREFIX.pack(0, BODY_CAP + 1))
    with pytest.raises(PeerLost, match="at once"):
        GroupLink(links[1]).receive(0)
    close_all(links)


def test_a_connection_that_ends_inside_a_blob_is_a_lost_rank(
    pool: ThreadPoolExecutor, listen: Callable[[], GroupListener]
) -> None:
    links = connect_all(pool, [listen(), listen()])
    links[0][1].sendall(PREFIX.pack(0, 100) + b"half")
    links[0][1].close()
    with pytest.raises(PeerLost):
        GroupLink(links[1]).receive(0)
    close_all(links)


def test_a_silent_rank_is_a_deadline_inside_a_step(
    pool: ThreadPoolExecutor,
    listen: Callable[[], GroupListener],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("node.worker.group_sockets.STEP_SECONDS", 0.1)
    links = connect_all(pool, [listen(), listen()])
    with pytest.raises(Deadline, match="silent"):
        GroupLink(links[1]).receive(0)
    close_all(links)


def test_strangers_are_refused_and_the_group_still_forms(
    pool: ThreadPoolExecutor, listen: Callable[[], GroupListener]
) -> None:
    leader, follower, stranger = listen(), listen(), listen()
    ranks = [rank_of(leader), rank_of(follower)]
    accepting = pool.submit(leader.connect, ranks, 0)
    with socket.create_connection((HOST, leader.port)) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n" * 20)
    nameless = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    nameless.check_hostname = False
    nameless.verify_mode = ssl.CERT_NONE
    assert _is_turned_away(lambda: _dial(nameless, leader.port))
    pretender = [rank_of(leader), rank_of(stranger)]
    assert _is_turned_away(lambda: stranger.connect(pretender, 1)[0])
    dialing = pool.submit(follower.connect, ranks, 1)
    own, theirs = accepting.result(20), dialing.result(20)
    assert own[1].getpeercert(binary_form=True) == follower.certificate
    close_all({0: own, 1: theirs})


def test_a_leader_that_shows_another_certificate_is_not_joined(
    listen: Callable[[], GroupListener], pool: ThreadPoolExecutor
) -> None:
    impostor, promised, follower = listen(), listen(), listen()
    accepting = pool.submit(impostor.connect, [rank_of(impostor), rank_of(follower)], 0)
    ranks = [rank_of(impostor, promised.certificate), rank_of(follower)]
    with pytest.raises(PeerLost, match="cannot be reached"):
        follower.connect(ranks, 1)
    close_all({1: follower.connect([rank_of(impostor), rank_of(follower)], 1)})
    close_all({0: accepting.result(20)})


def test_a_rank_that_never_comes_is_a_deadline(
    listen: Callable[[], GroupListener], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.worker.group_sockets.CONNECT_SECONDS", 0.2)
    leader, absent = listen(), listen()
    with pytest.raises(Deadline, match="did not connect"):
        leader.connect([rank_of(leader), rank_of(absent)], 0)


def test_a_leader_that_is_gone_is_lost_at_once(listen: Callable[[], GroupListener]) -> None:
    gone, follower = listen(), listen()
    ranks = [rank_of(gone), rank_of(follower)]
    gone.close()
    with pytest.raises(PeerLost, match="cannot be reached"):
        follower.connect(ranks, 1)


# ---------------------------------------------------------------- strangers, and several addresses


@contextmanager
def flood(port: int) -> Iterator[None]:
    """Strangers who connect without end and say nothing, as long as the block lasts."""
    over = threading.Event()

    def come() -> None:
        with ExitStack() as held:
            while not over.wait(0.01):
                held.enter_context(socket.create_connection((HOST, port), timeout=5))

    coming = threading.Thread(target=come)
    coming.start()
    try:
        yield
    finally:
        over.set()
        coming.join()


def test_strangers_do_not_extend_the_deadline(
    listen: Callable[[], GroupListener], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.worker.group_sockets.CONNECT_SECONDS", 0.3)
    leader, absent = listen(), listen()
    begin = time.monotonic()
    with flood(leader.port), pytest.raises(Deadline, match="Rank 1 of the group did not connect"):
        leader.connect([rank_of(leader), rank_of(absent)], 0)
    assert time.monotonic() - begin < 3.0  # with one wait for each stranger it never ends


def test_a_member_does_not_wait_behind_silent_strangers(
    pool: ThreadPoolExecutor,
    listen: Callable[[], GroupListener],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("node.worker.group_handshakes.HANDSHAKE_SECONDS", 600.0)
    leader, follower = listen(), listen()
    ranks = [rank_of(leader), rank_of(follower)]
    with ExitStack() as strangers:
        for number in range(60):
            source = (f"127.0.1.{number % 30 + 1}", 0)
            strangers.enter_context(
                socket.create_connection((HOST, leader.port), timeout=5, source_address=source)
            )
        with flood(leader.port):  # and more of them from the member's own address
            links = connect_all(pool, [leader, follower])
    assert links[0][1].getpeercert(binary_form=True) == ranks[1].certificate
    close_all(links)


def test_strangers_hold_a_few_places_only(
    pool: ThreadPoolExecutor,
    listen: Callable[[], GroupListener],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("node.worker.group_handshakes.HANDSHAKE_SECONDS", 600.0)
    leader, follower = listen(), listen()
    waiting = pool.submit(leader.connect, [rank_of(leader), rank_of(follower)], 0)
    with ExitStack() as strangers:
        held = [
            strangers.enter_context(
                socket.create_connection((HOST, leader.port), 5, (f"127.0.1.{number + 1}", 0))
            )
            for number in range(60)
        ]
        for each in held[: 60 - STRANGERS_CAP]:  # the oldest make way
            each.settimeout(10)
            assert _is_ended(each)
        held[-1].setblocking(False)
        with pytest.raises(BlockingIOError):
            held[-1].recv(1)
        links = follower.connect([rank_of(leader), rank_of(follower)], 1)
    close_all({0: waiting.result(20), 1: links})


def test_a_member_that_lost_its_place_midway_comes_again(
    pool: ThreadPoolExecutor, listen: Callable[[], GroupListener]
) -> None:
    leader, follower = listen(), listen()
    ranks = [rank_of(leader), rank_of(follower)]
    dialing = pool.submit(follower.connect, ranks, 1)
    leader._socket.accept()[0].close()
    accepted = leader.connect(ranks, 0)
    close_all({0: accepted, 1: dialing.result(20)})


def test_addresses_are_tried_until_one_leads_to_the_rank(
    pool: ThreadPoolExecutor,
    listen: Callable[[], GroupListener],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("node.worker.group_handshakes.STAGGER_SECONDS", 0.01)
    leader, follower = listen(), listen()
    refused, silent = "127.0.2.1", "127.0.2.2"
    hosts = (refused, silent, HOST)
    ranks = [Rank(hosts, leader.port, leader.certificate), rank_of(follower)]
    with socket.create_server((silent, leader.port)):
        futures = [pool.submit(each.connect, ranks, n) for n, each in enumerate((leader, follower))]
        links = {own: future.result(20) for own, future in enumerate(futures)}
    assert links[1][0].getpeername() == (HOST, leader.port)
    close_all(links)


def test_of_two_addresses_of_one_rank_both_sides_keep_the_same(
    pool: ThreadPoolExecutor,
    listen: Callable[[], GroupListener],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("node.worker.group_handshakes.STAGGER_SECONDS", 0.0)
    leader, follower = GroupListener("0.0.0.0"), listen()
    hosts = tuple(f"127.0.3.{number + 1}" for number in range(6))
    ranks = [Rank(hosts, leader.port, leader.certificate), rank_of(follower)]
    futures = [pool.submit(each.connect, ranks, n) for n, each in enumerate((leader, follower))]
    links = {own: future.result(20) for own, future in enumerate(futures)}
    GroupLink(links[1]).send(0, b"the same")
    assert GroupLink(links[0]).receive(1) == b"the same"
    close_all(links)
    leader.close()


def test_a_rank_that_cannot_be_reached_is_named_with_every_address_tried(
    listen: Callable[[], GroupListener],
) -> None:
    gone, follower = listen(), listen()
    hosts = ("127.0.2.1", "127.0.2.2")
    ranks = [Rank(hosts, gone.port, gone.certificate), rank_of(follower)]
    gone.close()
    with pytest.raises(PeerLost, match="cannot be reached") as lost:
        follower.connect(ranks, 1)
    assert all(f"{host}:{gone.port}" in lost.value.cause for host in hosts)


def test_every_listener_has_a_certificate_of_its_own(
    listen: Callable[[], GroupListener],
) -> None:
    assert len({listen().certificate for _ in range(3)}) == 3


def _dial(context: ssl.SSLContext, port: int) -> ssl.SSLSocket:
    return context.wrap_socket(socket.create_connection((HOST, port), timeout=5))


def _is_ended(each: socket.socket) -> bool:
    try:
        return each.recv(1) == b""
    except ConnectionResetError:
        return True


def _is_turned_away(connect: Callable[[], ssl.SSLSocket]) -> bool:
    """Whether a connection fails; in TLS 1.3 the dialer learns it with its first read."""
    try:
        with connect() as dialed:
            dialed.settimeout(5)
            return dialed.recv(1) == b""
    except (OSError, PeerError):
        return True
