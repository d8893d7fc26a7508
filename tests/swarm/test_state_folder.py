"""What is remembered of a hosted model folder: its path stays on this machine."""

import errno
import os
import stat
from pathlib import Path

import pytest

from swarm.errors import BadInput
from swarm.state_folder import (
    LAST_MODEL,
    local_name,
    read_secret,
    remember_model,
    shared_name,
    title_of,
    write_private,
)


def test_others_learn_the_last_name_of_a_folder_and_nothing_of_its_path(tmp_path: Path) -> None:
    folder = tmp_path / "someone" / "My Qwen ünïcode"
    folder.mkdir(parents=True)
    assert shared_name(folder) == "./My Qwen ünïcode"
    assert title_of(shared_name(folder)) == "My Qwen ünïcode"
    assert title_of(shared_name(folder, "qwen")) == "qwen"


def test_the_host_itself_finds_the_folder_again(tmp_path: Path) -> None:
    folder = tmp_path / "qwen"
    folder.mkdir()
    remember_model(tmp_path, "swarm-a", folder)
    assert local_name(tmp_path, "swarm-a", "./qwen") == str(folder)
    assert local_name(tmp_path, "swarm-b", "./qwen") == "./qwen"
    assert local_name(tmp_path, "swarm-a", "org/model") == "org/model"
    assert stat.S_IMODE((tmp_path / LAST_MODEL).stat().st_mode) == 0o600
    folder.rmdir()
    assert local_name(tmp_path, "swarm-a", "./qwen") == "./qwen"


@pytest.mark.parametrize("damaged", ["", "[]", '["swarm-a", 3]', "\x00"])
def test_a_damaged_memory_is_no_memory(tmp_path: Path, damaged: str) -> None:
    (tmp_path / LAST_MODEL).write_text(damaged)
    assert local_name(tmp_path, "swarm-a", "./qwen") == "./qwen"


def test_a_state_folder_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    remember_model(tmp_path / "nowhere", "swarm-a", tmp_path)
    assert local_name(tmp_path / "nowhere", "swarm-a", "./qwen") == "./qwen"


def test_a_private_file_is_its_users_only_whatever_stood_there(tmp_path: Path) -> None:
    path = tmp_path / "last_invite"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, b"secret")
    assert path.read_bytes() == b"secret"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["last_invite"]


def test_a_full_disk_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "last_invite"
    write_private(path, b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_private(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["last_invite"]


def test_a_secret_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "empty").write_text(" \n")
    for name in ("missing", "binary", "empty", "."):
        with pytest.raises(BadInput, match=name):
            read_secret(str(tmp_path / name))
