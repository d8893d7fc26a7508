"""What a machine offers: detected and declared."""

from dataclasses import replace

import psutil
import pytest

from node.probe import detect, machine_id, memory_words
from swarm.errors import BadInput
from swarm.hardware import Device


def test_a_machine_offers_at_least_its_cpu_within_its_memory() -> None:
    devices = detect(0)
    assert [device.index for device in devices] == list(range(len(devices)))
    for device in devices:
        assert device.memory_bytes > 0
        if device.kind == "cpu":
            assert device.memory_bytes < psutil.virtual_memory().total


def test_a_declared_limit_is_never_exceeded_and_never_more_than_there_is() -> None:
    assert [device.memory_bytes for device in detect(1000)] == [1000] * len(detect(0))
    most = max(device.total_bytes for device in detect())
    for device in detect(most):
        assert device.memory_bytes <= device.free_bytes
    with pytest.raises(BadInput, match=r"--memory .* is more than this machine's .*B\."):
        detect(most + 10**12)


def test_a_share_of_memory_is_one_of_what_is_free() -> None:
    for half, whole in zip(detect(share=0.5), detect(share=1.0), strict=True):
        assert half.memory_bytes == pytest.approx(whole.memory_bytes / 2, rel=0.1)


def test_the_offer_says_why_it_is_as_large_as_it_is() -> None:
    cpu = Device(0, "cpu", "CPU", 10 * 10**9, 1.0, 1.0)
    assert memory_words(cpu, 0, 0.0) == "80% of what is free"
    assert memory_words(replace(cpu, kind="cuda"), 0, 0.0) == "92% of what is free"
    assert memory_words(cpu, 0, 0.5) == "50% of what is free"
    assert memory_words(cpu, 10 * 10**9, 0.0) == ""
    assert memory_words(cpu, 12 * 10**9, 0.0) == "80% of what is free, not 12 GB"


def test_a_machine_has_one_id_that_says_nothing_about_it() -> None:
    assert machine_id() == machine_id()
    assert len(machine_id()) == 12
