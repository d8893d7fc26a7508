"""Identity: a key that lasts, a folder for one process, signatures that name their peer."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import BadInput
from swarm.trust.identity import (
    KEY_FILE,
    Identity,
    is_founder,
    peer_of_public_key,
    public_key_of,
    swarm_id,
    verify,
)


def test_a_peer_keeps_its_id_over_restarts(tmp_path: Path) -> None:
    first = Identity.load_or_create(tmp_path)
    first.close()
    second = Identity.load_or_create(tmp_path)
    assert second.peer == first.peer
    assert second.peer.startswith("12D3KooW")
    second.close()


def test_only_the_owner_may_read_the_key(tmp_path: Path) -> None:
    identity = Identity.load_or_create(tmp_path / "new" / "state")
    assert identity.path is not None
    assert stat.S_IMODE(identity.path.stat().st_mode) == 0o600
    identity.close()


def test_a_second_process_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    identity = Identity.load_or_create(tmp_path)
    program = (
        "import sys; from pathlib import Path; from swarm.trust.identity import Identity\n"
        "from swarm.errors import BadInput\n"
        "try: Identity.load_or_create(Path(sys.argv[1]))\n"
        "except BadInput as error: sys.exit(str(error))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"in use by process {os.getpid()}" in done.stderr
    assert "--state" in done.stderr
    identity.close()


def test_a_closed_identity_frees_its_folder(tmp_path: Path) -> None:
    Identity.load_or_create(tmp_path).close()
    Identity.load_or_create(tmp_path).close()


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x08\x01\x12\x40" + b"a" * 64])
def test_a_damaged_key_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    (tmp_path / KEY_FILE).write_bytes(content)
    with pytest.raises(BadInput, match="Restore it"):
        Identity.load_or_create(tmp_path)
    assert (tmp_path / KEY_FILE).read_bytes() == content
    (tmp_path / KEY_FILE).unlink()
    Identity.load_or_create(tmp_path).close()  # the failure holds no lock


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="state folder"):
        Identity.load_or_create(tmp_path / "file" / "state")


def test_a_throwaway_leaves_nothing_on_disk() -> None:
    identity = Identity.throwaway()
    assert identity.path is None
    with identity.key_file() as path:
        assert len(path.read_bytes()) == 68
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()
    identity.close()


def test_a_key_is_never_shown() -> None:
    assert "key" not in repr(Identity.throwaway())


def test_a_signature_holds_for_its_peer_and_its_data_only() -> None:
    one, other = Identity.throwaway(), Identity.throwaway()
    signature = one.sign(b"data")
    assert verify(one.peer, b"data", signature)
    assert not verify(one.peer, b"date", signature)
    assert not verify(other.peer, b"data", signature)
    assert not verify(one.peer, b"data", signature[:-1])


@given(st.text(max_size=80), st.binary(max_size=80), st.binary(max_size=70))
def test_verifying_nonsense_is_false(peer: str, data: bytes, signature: bytes) -> None:
    assert not verify(peer, data, signature)


@given(st.binary(min_size=32, max_size=32))
def test_a_peer_id_holds_its_public_key(public: bytes) -> None:
    assert public_key_of(peer_of_public_key(public)) == public


@pytest.mark.parametrize(
    "peer",
    ["", "12D3KooW", "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", "0OIl", "1" * 65],
)
def test_other_ids_have_no_public_key_in_them(peer: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        public_key_of(peer)


def test_a_swarm_id_names_its_founder() -> None:
    founder, other = Identity.throwaway().peer, Identity.throwaway().peer
    swarm = swarm_id("my-home", founder)
    assert swarm.startswith("my-home-")
    assert len(swarm) == len("my-home-") + 26
    assert is_founder(swarm, founder)
    assert not is_founder(swarm, other)
    assert not is_founder("my-home", founder)
    assert not is_founder(swarm.replace("my", "your"), founder)


def test_a_founder_is_named_by_as_many_bits_as_nobody_can_try() -> None:
    founder = Identity.throwaway().peer
    mark = swarm_id("my-home", founder).rpartition("-")[2]
    assert 5 * len(mark) >= 128
    for shortened in (mark[:9], mark[:25], "", mark + "a"):
        assert not is_founder(f"my-home-{shortened}", founder)


def test_a_swarm_that_was_founded_with_forty_bits_lives_on() -> None:
    founder, other = Identity.throwaway().peer, Identity.throwaway().peer
    old = swarm_id("my-home", founder)[: len("my-home-") + 8]
    assert is_founder(old, founder)
    assert not is_founder(old, other)


def test_folder_and_key_are_for_their_user_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        identity = Identity.load_or_create(tmp_path / "state" / "node-1")
    finally:
        os.umask(before)
    assert identity.path is not None
    assert stat.S_IMODE(identity.path.stat().st_mode) == 0o600
    for folder in identity.path.parents[:2]:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    identity.close()


@pytest.mark.parametrize("name", ["", "a/b", "a b", "x" * 41])
def test_a_name_that_would_break_keys_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match="name"):
        swarm_id(name, "founder")
