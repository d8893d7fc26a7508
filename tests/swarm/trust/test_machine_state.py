"""MachineState: one key a machine, a certificate a swarm, and nothing that others can read."""

import threading
from pathlib import Path

import pytest

from swarm.errors import BadInput
from swarm.trust.identity import Identity, swarm_id
from swarm.trust.machine_state import FOLDER, KEY_FILE, MachineState
from swarm.trust.membership import certify, found, pass_for
from swarm.trust.register import REVOKED, make_entry
from tests.swarm.trust.machines import NOW, SWARM, One, founders_machine

HOST = founders_machine()
OTHER_SWARM = swarm_id("home", Identity.throwaway().peer)


def test_programs_that_start_at_once_agree_on_one_key(tmp_path: Path) -> None:
    found = list[str]()
    start = threading.Barrier(8)

    def look() -> None:
        start.wait()
        found.append(MachineState(tmp_path).identity().peer)

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_a_certificate_is_kept_for_its_swarm_and_read_only_if_it_is_genuine(tmp_path: Path) -> None:
    state, machine = MachineState(tmp_path), HOST.certified()
    assert state.holding(SWARM) is None
    state.keep(SWARM, machine.holding)
    assert MachineState(tmp_path).holding(SWARM) == machine.holding
    assert state.holding(OTHER_SWARM) is None
    (path,) = (tmp_path / FOLDER).glob("*.holding")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert state.holding(SWARM) is None


def test_the_name_of_a_swarm_leads_out_of_no_folder(tmp_path: Path) -> None:
    state = tmp_path / "one" / "two"
    MachineState(state).keep("../../up-abcdefgh", HOST.holding)
    assert [each.parent for each in tmp_path.rglob("*.holding")] == [state / FOLDER]


def test_every_file_is_private(tmp_path: Path) -> None:
    state = MachineState(tmp_path)
    state.identity()
    state.keep(SWARM, HOST.holding)
    register, passes = state.register(SWARM), state.passes(SWARM)
    register.add([make_entry(SWARM, HOST.issuer, REVOKED, One().id, NOW)], NOW)
    register.save()
    passes.note(pass_for(SWARM, HOST.holding, HOST.identity, Identity.throwaway().peer, NOW))
    passes.write(passes.take_news())
    files = [*(tmp_path / FOLDER).iterdir(), tmp_path / KEY_FILE]
    assert {each.suffix for each in files} == {".holding", ".register", ".passes", ".key"}
    assert [each.stat().st_mode & 0o777 for each in files] == [0o600] * 4
    assert MachineState(tmp_path).register(SWARM).digest == register.digest


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    state = MachineState(tmp_path / "file" / "state")
    with pytest.raises(BadInput, match="Cannot use the state folder"):
        state.identity()
    with pytest.raises(BadInput, match="The certificate cannot be kept"):
        state.keep(SWARM, HOST.holding)


def test_certificates_of_two_swarms_lie_beside_each_other(tmp_path: Path) -> None:
    founder, state = Identity.throwaway(), MachineState(tmp_path)
    swarm, machine = swarm_id("home", founder.peer), state.identity()
    theirs = found(swarm, founder, machine, NOW)
    ours = certify(SWARM, HOST.issuer, machine.peer, NOW, as_delegate=False)
    state.keep(swarm, theirs)
    state.keep(SWARM, ours)
    assert (state.holding(swarm), state.holding(SWARM)) == (theirs, ours)
