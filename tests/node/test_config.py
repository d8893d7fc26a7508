"""The node's command line: what a person may type, and the sentence for what cannot work."""

import asyncio
import errno
import os
import shutil
from pathlib import Path

import pytest

from node.config import NodeConfig, read_config, worker_environment
from node.network.bootstrap import (
    _remember,
    _seen_from_here,
    daemon_network,
    invite_of,
    open_identity,
    open_network,
)
from node.served_model import read_founded, read_model
from swarm.checkpoint.folder import find_model
from swarm.errors import BadInput, BadInvite, BadModel, Unreachable
from swarm.invites import Invite
from swarm.model_spec import BUILT_IN
from swarm.p2p.p2p_daemon import P2PDaemon
from swarm.records import Manifest
from swarm.state_folder import LAST_INVITE, state_folder
from swarm.testing.memory_network import peer_named
from tests.builders import describe

RELAY = peer_named("relay")
INVITE = Invite((f"/ip4/127.0.0.1/tcp/4001/p2p/{peer_named('host')}",), "swarm-abc", BUILT_IN)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SWARM_INVITE", raising=False)
    monkeypatch.setenv("SWARM_STATE", str(tmp_path))


def test_a_host_needs_nothing_else(tmp_path: Path) -> None:
    config = read_config(["--host"])
    assert config.founds
    assert config.model == BUILT_IN
    assert config.memory_bytes == 0
    assert config.slowdown == 1.0
    assert config.state == tmp_path
    assert invite_of(config) is None


def test_every_choice_is_read() -> None:
    words = "--join swarm1:x --memory 1.5MB --slowdown 2.5 --threads 3 --name anna"
    more = "--listen 127.0.0.1 --port 4001 --announce /ip4/1.2.3.4/tcp/1 --announce /dns4/x/tcp/2"
    config = read_config([*words.split(), *more.split(), "--state", "here", "--quant", "int8"])
    assert not config.founds
    assert config.invite == "swarm1:x"
    assert config.memory_bytes == 1_500_000
    assert (config.slowdown, config.threads, config.name) == (2.5, 3, "anna")
    assert (config.listen, config.port) == ("127.0.0.1", 4001)
    assert config.announce == ("/ip4/1.2.3.4/tcp/1", "/dns4/x/tcp/2")
    assert config.state == Path("here")
    assert config.quant == "int8"
    assert config.activations == "auto"
    assert config.dtype == "auto"


@pytest.mark.parametrize("dtype", ["auto", "f32", "f16", "bf16"])
def test_every_dtype_may_be_chosen(dtype: str) -> None:
    assert read_config(["--host", "--dtype", dtype]).dtype == dtype


@pytest.mark.parametrize("form", ["auto", "full", "int8"])
def test_every_form_of_activations_may_be_chosen(form: str) -> None:
    assert read_config(["--host", "--activations", form]).activations == form


@pytest.mark.parametrize(
    "words",
    [
        "--host --slowdown 0.5",
        "--host --slowdown 1001",
        "--host --slowdown nan",
        "--host --threads 0",
        "--host --activations int4",
        "--host --port 65536",
        "--host --port -1",
        "--host --memory lots",
        "--host --memory 0GB",
        "--host --memory=-1GB",
        "--host --memory 5XB",
        "--host --memory nanGB",
        "--host --memory 8",
        "--host --memory 101%",
        "--host --memory 0%",
        "--host --memory %",
        "--host --announce nonsense",
        "--host --announce 203.0.113.7",
        "--host --announce 0.0.0.0:4001",
        "--host --announce /ip4/203.0.113.7",
        "--host --relay /ip4/203.0.113.7/tcp/4001",
        "--host --relay /ip4/203.0.113.7/tcp/4001/p2p/nonsense",
        f"--host --relay 203.0.113/p2p/{RELAY}",
        f"--host --relay /ip4/192.168.1.7/tcp/4001/p2p/{RELAY}",
        "--host --listen ::x",
        "--host --listen my-host",
        "--host --quant int4",
        "--host --dtype int8",
        "--host --dtype BF16",
        "--host --dtype=",
        "--host --quant int8 --dtype bf16",
        "--host --sessions-per-step -1",
    ],
)
def test_a_value_out_of_range_is_one_sentence_and_a_next_step(words: str) -> None:
    with pytest.raises(BadInput) as caught:
        read_config(words.split())
    assert caught.value.exit_code == 2
    assert caught.value.next_step
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("words", ["", "--host --join x", "--port 1", "--host --slowdown fast"])
def test_a_command_line_that_makes_no_sense_is_refused_like_any_other(words: str) -> None:
    with pytest.raises(BadInput) as caught:
        read_config(words.split(), "swarm node")
    assert caught.value.next_step == "See `swarm node --help`."


def test_a_mistyped_role_is_told_from_a_missing_one() -> None:
    with pytest.raises(BadInput, match=r"no option '--hots'. Did you mean --host\?"):
        read_config(["--hots"])
    with pytest.raises(BadInput, match="One of the arguments --host --join is required"):
        read_config(["--port", "1"])


def test_joining_takes_the_given_invite_then_the_environment_then_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / LAST_INVITE).write_text(Invite(INVITE.addresses, "last-one", BUILT_IN).encode())
    found = invite_of(read_config(["--join"]))
    assert found is not None
    assert found.swarm == "last-one"
    second = Invite(INVITE.addresses, "from-environment", BUILT_IN)
    monkeypatch.setenv("SWARM_INVITE", second.encode())
    assert invite_of(read_config(["--join"])) == second
    assert invite_of(read_config(["--join", INVITE.encode()])) == INVITE


def test_joining_without_any_invite_says_what_to_do() -> None:
    with pytest.raises(BadInvite, match="Pass --join INVITE, set SWARM_INVITE"):
        invite_of(read_config(["--join"]))


@pytest.mark.parametrize("text", ["hello", "swarm1:", "swarm1:AAAA", "swarm9:AAAA", "\x00\udcff"])
def test_a_malformed_invite_is_refused(text: str) -> None:
    with pytest.raises(BadInvite):
        invite_of(read_config(["--join", text]))


def test_a_damaged_last_invite_is_refused(tmp_path: Path) -> None:
    (tmp_path / LAST_INVITE).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInvite):
        invite_of(read_config(["--join"]))


def test_the_state_lies_where_other_programs_keep_theirs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("SWARM_STATE")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert state_folder(os.environ) == tmp_path / "xdg" / "swarm"
    monkeypatch.delenv("XDG_STATE_HOME")
    assert state_folder(os.environ) == Path.home() / ".local" / "state" / "swarm"


def test_two_nodes_of_one_state_folder_are_two_peers(tmp_path: Path) -> None:
    one, first = open_identity(tmp_path)
    other, second = open_identity(tmp_path)
    assert first != second
    assert one.peer != other.peer
    one.close()
    again, folder = open_identity(tmp_path)
    assert (again.peer, folder) == (one.peer, first)
    again.close()
    other.close()


def test_a_state_folder_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    taken = tmp_path / "file"
    taken.write_text("not a folder")
    with pytest.raises(BadInput, match="Cannot use the state folder"):
        open_identity(taken)


def test_the_built_in_model_is_found_and_measured_by_its_headers() -> None:
    served = asyncio.run(read_model(BUILT_IN, describe))
    assert served.name == BUILT_IN
    assert served.spec.kv_heads == 8
    assert served.spec.layers >= 8


def test_a_folder_is_shared_by_its_last_name_or_the_one_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    shutil.copytree(find_model(BUILT_IN), model)
    monkeypatch.chdir(tmp_path)
    for name in ("model", str(model), "./model/"):
        served = asyncio.run(read_model(name, describe))
        assert (served.name, served.spec.name, served.is_folder) == ("./model", "model", True)
    config = read_config(["--host", "--model", "model", "--served-model-name", "me"])
    chosen = asyncio.run(read_founded(config, describe))
    assert (chosen.name, chosen.spec.name) == ("./me", "me")


def test_a_model_that_others_find_by_its_name_keeps_it() -> None:
    with pytest.raises(BadInput, match="others find swarm-tiny by this name only"):
        asyncio.run(read_founded(read_config(["--host", "--served-model-name", "mine"]), describe))


@pytest.mark.parametrize(
    ("typed", "size", "share"),
    [
        ("8G", 8 * 10**9, 0.0),
        ("8GB", 8 * 10**9, 0.0),
        ("8gib", 8 * 2**30, 0.0),
        ("512M", 512 * 10**6, 0.0),
        ("1.5 TB", 1_500_000_000_000, 0.0),
        ("700000000B", 700_000_000, 0.0),
        ("80%", 0, 0.8),
        (" 12.5% ", 0, 0.125),
    ],
)
def test_memory_is_a_size_or_a_share_of_what_is_free(typed: str, size: int, share: float) -> None:
    config = read_config(["--host", "--memory", typed])
    assert (config.memory_bytes, config.memory_share) == (size, share)


def test_a_size_without_a_unit_is_asked_for_one() -> None:
    with pytest.raises(BadInput, match="'8' lacks a unit: gigabytes are 8GB"):
        read_config(["--host", "--memory", "8"])


def test_a_founder_behind_a_router_is_private_and_its_relay_is_what_it_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = ["/ip4/192.168.1.7/tcp/4001"]
    monkeypatch.setattr("node.network.bootstrap.own_multiaddrs", lambda _host, _port: own)
    named = f"/ip4/203.0.113.7/tcp/4001/p2p/{RELAY}"
    config = read_config(["--host", "--relay", f"203.0.113.7:4001/p2p/{RELAY}"])
    assert config.relays == (named,)
    network = daemon_network(config, None)
    assert (network.is_private, network.relays) == (True, (named,))
    assert not network.initial_peers  # who relays need not be in the swarm
    assert not daemon_network(read_config(["--host"]), None).is_private
    own.append("/ip4/198.51.100.2/tcp/4001")
    assert not daemon_network(config, None).is_private


def test_an_announced_port_is_the_one_listened_on_unless_another_is_given() -> None:
    config = read_config(["--host", "--announce", "203.0.113.7:4001"])
    assert (config.announce, config.port) == (("/ip4/203.0.113.7/tcp/4001",), 4001)
    assert read_config(["--host", "--announce", "203.0.113.7:4001", "--port", "9"]).port == 9


def test_the_host_of_an_announced_swarm_is_also_known_by_its_own_addresses() -> None:
    config = read_config(["--host", "--announce", "203.0.113.7:4001", "--listen", "localhost"])
    assert _seen_from_here(config, "me") == ("/ip4/127.0.0.1/tcp/4001/p2p/me",)
    assert _seen_from_here(read_config(["--host"]), "me") == ()


def test_a_node_that_listens_nowhere_says_so_instead_of_an_invite_that_nobody_can_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serving = Manifest(BUILT_IN, "0" * 64, "f32", 0.0)

    async def nowhere(process: P2PDaemon) -> tuple[str, ...]:
        return ()

    async def open_it() -> None:
        config = read_config(["--host", "--listen", "localhost"])
        async with open_network(config, lambda: asyncio.sleep(0, serving), print):
            pytest.fail("there is no address to invite to")

    monkeypatch.setattr(P2PDaemon, "addresses", nowhere)
    with pytest.raises(Unreachable, match="listens at no address"):
        asyncio.run(open_it())


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match="There is no folder"):
        asyncio.run(read_model(str(tmp_path / "nowhere"), describe))
    with pytest.raises(BadModel, match=r"no config\.json"):
        asyncio.run(read_model(str(tmp_path), describe))


def test_a_config_made_by_a_program_is_checked_too() -> None:
    with pytest.raises(BadInput):
        NodeConfig(founds=True, port=1 << 20)


def test_kernels_are_kept_with_the_keys_where_the_package_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("SWARM_STATE", str(tmp_path))
    assert "NUMBA_CACHE_DIR" not in worker_environment()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert worker_environment()["NUMBA_CACHE_DIR"] == str(tmp_path / "kernels")
    monkeypatch.setenv("NUMBA_CACHE_DIR", "elsewhere")
    assert worker_environment()["NUMBA_CACHE_DIR"] == "elsewhere"


def test_the_key_comes_from_the_line_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SWARM_KEY", raising=False)
    (tmp_path / "key").write_text("from a file\n")
    assert read_config(["--host"]).key == ""
    assert read_config(["--host", "--key", "typed"]).key == "typed"
    assert read_config(["--host", "--key-file", str(tmp_path / "key")]).key == "from a file"
    monkeypatch.setenv("SWARM_KEY", "from outside")
    assert read_config(["--host"]).key == "from outside"
    assert read_config(["--join", "swarm1:x"]).key == ""


def test_a_key_that_nobody_types_is_a_strong_one() -> None:
    first, second = (read_config(["--host", "--key"]).key for _ in range(2))
    assert len(first) >= 32
    assert first != second


def test_a_full_disk_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("node.network.bootstrap.write_private", full)
    with pytest.raises(BadInput, match="No space left") as caught:
        _remember(INVITE, tmp_path / LAST_INVITE)
    assert "--state" in caught.value.next_step


def test_a_peer_to_trust_is_named_by_its_id() -> None:
    peer = peer_named("anna")
    assert read_config(["--host", "--trust", peer]).trusted == (peer,)
    with pytest.raises(BadInput, match="not the id of a peer"):
        read_config(["--host", "--trust", "anna"])
