"""`swarm invite`: a line that names who is there, until when it holds, and a code for cameras."""

import asyncio
import re
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import segno

from client.cli.commands import main
from client.cli.invite import fitting_code, show_code
from client.cli.qr_code import BLACK_ON_WHITE, HALVES, QUIET_MODULES, RESET, qr_code, qr_size
from client.cli.terminal import Terminal
from client.network import Links
from swarm.errors import BadInput, Unreachable
from swarm.hardware import Device
from swarm.invites import Invite, peer_of_address
from swarm.p2p.address_book import AddressBook
from swarm.records import Capability, Relay
from swarm.testing.memory_network import MemoryWorld, peer_named
from swarm.trust.identity import Identity, swarm_id
from swarm.trust.machine_state import MachineState
from swarm.trust.membership import certify, found

DEVICE = Device(0, "cpu", "CPU", 10**9, 1e9, 1e9)
HOST, SECOND, RELAY, ME = (Identity.throwaway().peer for _ in range(4))
KNOWN = Invite((f"/ip4/203.0.113.1/tcp/1/p2p/{HOST}",), "forest-abcdefgh", "tiny", "a key")
JOIN = ("--join", KNOWN.encode())


@asynccontextmanager
async def connect(_invite: Invite) -> AsyncIterator[Links]:
    """Two members and a relay."""
    world = MemoryWorld()
    for number, peer in enumerate((HOST, SECOND), start=1):
        at = [f"/ip4/203.0.113.{number}/tcp/1"]
        known = Capability("m", [DEVICE], [], str(number), True, 0.0, addresses=at)
        await world.board(peer).publish(known)
    await world.board(RELAY).publish(Relay(["/ip4/203.0.113.9/tcp/1"], 0.0))
    yield Links(world.board(peer_named("me")), world.channel(peer_named("me")))


@asynccontextmanager
async def nobody(_invite: Invite) -> AsyncIterator[Links]:
    raise Unreachable("No peer in the invite answers.")
    yield


def made(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[Invite, str]:
    """The invite that the command prints, and what it says beside it."""
    assert main(["invite", *words, *JOIN], str, connect) == 0
    shown = capsys.readouterr()
    return Invite.parse(shown.out.strip().split("\n")[-1]), shown.err


def test_it_names_every_peer_that_is_there_and_the_relays(
    capsys: pytest.CaptureFixture[str],
) -> None:
    invite, said = made(capsys)
    assert {peer_of_address(each) for each in invite.addresses} == {HOST, SECOND, RELAY}
    assert peer_of_address(invite.addresses[0]) == HOST
    assert [peer_of_address(each) for each in invite.relays] == [RELAY]
    assert (invite.swarm, invite.model, invite.key) == ("forest-abcdefgh", "tiny", "a key")
    assert "names 3 peers and holds until 20" in said


def test_it_holds_for_as_long_as_was_asked(capsys: pytest.CaptureFixture[str]) -> None:
    week, _ = made(capsys)
    hour, _ = made(capsys, "--expires", "1h")
    assert 6.9 * 86400 < week.expires - hour.expires < 7 * 86400


def test_where_nobody_answers_it_names_the_peers_known_before(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["invite", *JOIN], str, nobody) == 0
    assert Invite.parse(capsys.readouterr().out).addresses == KNOWN.addresses
    assert "names the peers known before" in caplog.text


def remembering(state: Path, *addresses: str) -> tuple[str, str]:
    """The option of a state folder whose address book holds these."""
    book = AddressBook.open(state, KNOWN.swarm)
    for each in addresses:
        book.note(peer_of_address(each), [each])
    asyncio.run(book.write())
    return "--state", str(state)


def test_a_delegate_makes_no_invite_for_another_one(tmp_path: Path) -> None:
    """Nobody could redeem it."""
    state, founder = MachineState(tmp_path), Identity.throwaway()
    swarm, machine, now = swarm_id("forest", founder.peer), state.identity(), time.time()
    words = ("--state", str(tmp_path), "--join", replace(KNOWN, swarm=swarm).encode())
    state.keep(swarm, found(swarm, founder, machine, now))
    assert main(["invite", "--delegate", *words], str, connect) == 0
    above = Identity.throwaway()
    issuer = found(swarm, founder, above, now), above
    state.keep(swarm, certify(swarm, issuer, machine.peer, now, as_delegate=True))
    assert main(["invite", *words], str, connect) == 0
    with pytest.raises(BadInput, match="leave out --delegate"):
        main(["invite", "--delegate", *words], str, connect)


def test_remembered_peers_fill_it_up_where_something_listens(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        there = f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer_named('there')}"
        gone = f"/ip4/127.0.0.1/tcp/9/p2p/{peer_named('gone')}"
        through = f"{there}/p2p-circuit/p2p/{peer_named('home')}"
        invite, said = made(capsys, *remembering(tmp_path, there, gone, through))
    assert {peer_of_address(each) for each in invite.addresses} == {
        *(HOST, SECOND, RELAY),
        peer_named("there"),
    }
    assert [peer_of_address(each) for each in invite.relays] == [RELAY, peer_named("there")]
    assert "names 4 peers" in said


def test_a_relay_that_the_invite_of_before_names_is_named_again_if_something_listens(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Who founded behind a router has it from nowhere else: it is in no swarm."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        named = f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer_named('named')}"
        gone = f"/ip4/127.0.0.1/tcp/9/p2p/{peer_named('gone')}"
        before = replace(KNOWN, relays=(gone, named)).encode()
        assert main(["invite", "--join", before], str, connect) == 0
    invite = Invite.parse(capsys.readouterr().out)
    assert [peer_of_address(each) for each in invite.relays] == [RELAY, peer_named("named")]


def test_where_nobody_answers_it_names_whom_the_address_book_remembers(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    old = f"/ip4/203.0.113.5/tcp/1/p2p/{SECOND}"
    through = f"/ip4/203.0.113.6/tcp/1/p2p/{RELAY}/p2p-circuit/p2p/{ME}"
    assert main(["invite", *remembering(tmp_path, old, through), *JOIN], str, nobody) == 0
    invite = Invite.parse(capsys.readouterr().out)
    assert invite.addresses == (*KNOWN.addresses, old)
    assert [peer_of_address(each) for each in invite.relays] == [RELAY]


@pytest.mark.parametrize("time", ["7", "d", "0d", "-1d", "1.5h", "9999999w", "1y", "²d"])
def test_a_time_that_is_none_is_refused(time: str) -> None:
    with pytest.raises(BadInput, match=r"--expires.*(is no time|is not between)"):
        main(["invite", f"--expires={time}", *JOIN], str, connect)


def test_the_code_is_black_on_white_whatever_the_terminals_colours() -> None:
    lines = qr_code("SWARM2:ABC").split("\n")
    bare = [line.removeprefix(BLACK_ON_WHITE).removesuffix(RESET) for line in lines]
    assert [f"{BLACK_ON_WHITE}{line}{RESET}" for line in bare] == lines
    modules = {glyph: pair for pair, glyph in HALVES.items()}
    rows = [[modules[glyph][half] for glyph in line] for line in bare for half in (0, 1)]
    made = segno.make("SWARM2:ABC", error="l", micro=False, boost_error=False)
    code = [[bool(module) for module in row] for row in made.matrix_iter(border=QUIET_MODULES)]
    assert rows[: len(code)] == code


LARGE = Invite(
    swarm="forest-" + 26 * "a",
    model="HuggingFaceTB/SmolLM2-135M",
    key=32 * "k",
    addresses=tuple(
        f"/ip4/203.0.113.{at}/tcp/{port}/p2p/{peer_named(str(at))}"
        for at in range(4)
        for port in (1, 2, 3)
    ),
    relays=(f"/ip4/203.0.113.9/tcp/1/p2p/{RELAY}",),
    expires=2e9,
    ticket=bytes(range(250)),
)


def test_a_code_names_as_much_as_fits_the_terminal_and_one_peer_at_least() -> None:
    fits = {
        bounds: fitting_code(LARGE, *bounds) for bounds in ((0, 0), (100, 60), (80, 24), (9, 9))
    }
    assert fits[0, 0][1] == fits[100, 60][1] == LARGE
    founders_ticket, _ = fits[80, 24]
    assert qr_size(founders_ticket) == (77, 39), "an invite with a ticket fits 80 columns"
    for text, shown in fits.values():
        assert shown == Invite.parse(text)
        assert (shown.swarm, shown.key, shown.ticket) == (LARGE.swarm, LARGE.key, LARGE.ticket)
    assert fits[9, 9][1].addresses == fits[80, 24][1].addresses == LARGE.addresses[:1]
    plain = replace(LARGE, ticket=b"", key="")
    text, shown = fitting_code(plain, 80, 30)
    assert qr_size(text)[1] <= 30
    assert shown.addresses == plain.addresses[::3][: len(shown.addresses)]


def test_a_terminal_that_is_too_small_gets_no_broken_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.cli.terminal.Terminal.width", 40)
    monkeypatch.setattr("client.cli.terminal.Terminal.height", 24)
    show_code(LARGE, Terminal())
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "takes 77 columns, and this terminal has 40" in shown.err
    monkeypatch.setattr("client.cli.terminal.Terminal.width", 80)
    show_code(LARGE, Terminal())
    shown = capsys.readouterr()
    assert len(shown.out.strip("\n").split("\n")) == 39
    assert "names 1 peer, at one address each" in shown.err
    assert "takes 39 lines" in shown.err


def test_the_code_comes_before_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["invite", "--qr", *JOIN], str, connect) == 0
    shown = capsys.readouterr().out.strip().split("\n")
    assert all(line.startswith(BLACK_ON_WHITE) for line in shown[:-1])
    assert re.fullmatch(r"swarm2:\S+", shown[-1])
