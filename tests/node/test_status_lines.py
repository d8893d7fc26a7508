"""StatusLines of a node's start: short lines, each said once, in the order in which it happens."""

from dataclasses import replace

from node.network.reachability import ReachState, Verdict
from node.status_lines import WAITING_SECONDS, StatusLines, name_of, reach_of
from node.worker.messages import Loaded
from swarm.formatting import bytes_text, short_id
from swarm.hardware import Device
from swarm.plan import Assignment, Shard, Stage
from swarm.testing.memory_network import peer_named
from tests.node.memberships import LAYER_BYTES, SPEC, capability_of

ME, PLANNER = peer_named("me"), peer_named("planner")
STAGE = Stage(0, 3, (Shard(f"{ME}/0", 5, 6), Shard(f"{PLANNER}/0", 3, 2)))
LONE = Assignment(Stage(3, 8, (Shard(f"{ME}/0", 8, 8),)), 0)
LOADED = Loaded("g", 3_500_000, 3_600_000, 512, 0.01)


class Listener:
    """Hears what a node says."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.now = 0.0
        self.status = StatusLines(self.lines.append, lambda _: None, SPEC, lambda: self.now)


def test_a_start_takes_at_most_ten_lines_and_tells_everything() -> None:
    heard = Listener()
    status = heard.status
    status.introduce("anna", ME, "reachable at 2 addresses")
    status.swarm("swarm-abc")
    status.invite("swarm1:xyz")
    status.offer(Device(0, "cpu", "x86_64 CPU", 8_000_000, 2e9, 5e9))
    status.waiting("waiting for peers")
    status.assigned(Assignment(STAGE, 1), PLANNER, 4)
    status.ready(Assignment(STAGE, 1), LOADED)
    assert len(heard.lines) <= 10
    assert all("\n" not in line and len(line) < 160 for line in heard.lines)
    assert [line.partition(":")[0] for line in heard.lines] == [
        *("node", "swarm", "invite", "join", "offer", "waiting", "plan", "ready"),
    ]
    text = "\n".join(heard.lines)
    assert f"anna ({ME[-8:]}), reachable at 2 addresses" in text
    assert "python -m swarm.node --join swarm1:xyz" in text
    assert "8 MB, 2 GB/s decode, 5.0 GFLOP/s, in f32" in text
    assert "layers 0-2 of 8, 3 of 8 KV heads, 2 of 8 blocks, rank 1 of 2" in text
    assert f"by planner {PLANNER[-8:]} in its term 4" in text
    assert "(its leader takes the requests), 3.5 MB loaded, 3.6 MB read" in text


def test_the_first_line_says_what_is_known_of_the_way_here_and_no_more() -> None:
    here, lan = "/ip4/127.0.0.1/tcp/4001/p2p/me", "/ip4/192.0.2.2/tcp/4001/p2p/me"
    assert reach_of([here], ()) == "reachable from this machine only"
    assert reach_of([here, lan, lan], ()) == "listens at 192.0.2.2:4001 (not checked from outside)"
    announced = ["/ip4/203.0.113.7/tcp/4001"]
    assert reach_of([here], announced) == "announced at 203.0.113.7:4001 (not checked)"
    many = [f"/ip4/192.0.2.{number}/tcp/1" for number in range(5)]
    assert "192.0.2.2:1 and 2 more (" in reach_of(many, ())


def test_a_second_host_says_whom_commands_ask_now() -> None:
    heard = Listener()
    for before in ("", "swarm-b", "swarm-a"):
        heard.status.asked("swarm-b", before)
    assert heard.lines == ["asked: `swarm generate` without --join now asks swarm-b, not swarm-a"]


def test_a_whole_stage_says_so() -> None:
    heard = Listener()
    heard.status.assigned(LONE, PLANNER, 1)
    heard.status.ready(LONE, LOADED)
    assert "layers 3-7 of 8, whole" in heard.lines[0]
    assert "leader takes" not in heard.lines[1]


def test_a_reload_says_how_much_of_the_shard_is_new_and_where_it_came_from() -> None:
    heard = Listener()
    kept = Loaded("g", 3_400_000, 1_300_000, 512, 0.01, 2_200_000)
    heard.status.ready(LONE, kept, ", 1.3 MB fetched from the hub")
    assert "1.2 MB new of 3.4 MB, 1.3 MB read, 1.3 MB fetched from the hub" in heard.lines[0]


def test_waiting_is_said_again_when_the_reason_changes_or_is_back() -> None:
    heard = Listener()
    for reason in ("", "1 GB is missing", "1 GB is missing", "90 MB are missing"):
        heard.status.waiting(reason)
        heard.now += WAITING_SECONDS
    heard.status.assigned(LONE, PLANNER, 1)
    heard.status.waiting("90 MB are missing")
    told = [line for line in heard.lines if not line.startswith("plan")]
    assert told == [f"waiting: {words} missing" for words in ("1 GB is", "90 MB are", "90 MB are")]


def test_a_reason_that_each_newcomer_changes_is_said_when_it_has_lasted() -> None:
    heard = Listener()
    for missing in range(9, 0, -1):
        heard.status.waiting(f"{missing} GB are missing")
    assert heard.lines == ["waiting: 9 GB are missing"]
    heard.now += WAITING_SECONDS
    heard.status.waiting("1 GB are missing")
    assert heard.lines[1:] == ["waiting: 1 GB are missing"]


def test_what_was_given_up_on_purpose_is_not_called_lost() -> None:
    heard = Listener()
    heard.status.released(0, "")
    heard.status.released(0, "3 GB are missing")
    heard.status.waiting("3 GB are missing")  # that was just said
    assert heard.lines == [
        "released: device 0 no longer holds layers, the plan has no part for it",
        "released: device 0 no longer holds layers: 3 GB are missing",
    ]


def test_a_spare_says_once_whether_it_is_too_small_or_not_needed() -> None:
    small, large = Listener(), Listener()
    for _ in range(2):
        small.status.spare(0, LAYER_BYTES - 1)
        large.status.spare(1, LAYER_BYTES)
    assert small.lines == [
        f"spare: device 0 is too small for one layer of {bytes_text(LAYER_BYTES)}; it is idle"
    ]
    assert large.lines == ["spare: device 1 is not needed now; it is idle"]


def test_a_layer_of_a_narrow_device_is_as_small_as_the_device_holds_it() -> None:
    heard = Listener()
    gpu = Device(0, "cuda", "GPU", LAYER_BYTES // 2, 2e9, 5e9, 2.0, "bf16")
    heard.status.offer(gpu)
    heard.status.offer(Device(1, "cpu", "CPU", 10**9, 2e9, 5e9, 1.1))
    assert [line.rpartition(", ")[2] for line in heard.lines] == ["in bf16", "in int8 and f32"]
    heard.status.spare(0, gpu.memory_bytes)
    assert heard.lines[-1] == "spare: device 0 is not needed now; it is idle"


def test_a_spare_that_was_needed_may_say_that_it_is_one_again() -> None:
    heard = Listener()
    heard.status.spare(0, LAYER_BYTES)
    heard.status.assigned(LONE, PLANNER, 1)
    heard.status.spare(0, LAYER_BYTES)
    assert [line.partition(":")[0] for line in heard.lines] == ["spare", "plan", "spare"]


def test_a_link_that_gets_int8_is_told_with_its_speed_and_so_is_the_way_back() -> None:
    heard = Listener()
    heard.status.link(PLANNER, 1.2e6)
    heard.status.link(PLANNER, 0.0)
    assert heard.lines == [
        f"link: activations to {PLANNER[-8:]} travel as int8: the link carries 1.2 MB/s",
        f"link: activations to {PLANNER[-8:]} travel in full",
    ]


def test_the_end_is_told() -> None:
    heard = Listener()
    heard.status.lost(0, "rank 1 is gone.")
    heard.status.left()
    assert heard.lines == [
        "lost: the shard of device 0 (rank 1 is gone); loading again when planned",
        "left: record withdrawn, sessions handed over",
    ]


def test_people_see_names_and_else_the_end_of_an_id() -> None:
    assert short_id(ME) == ME[-8:]
    assert name_of(capability_of(), ME) == ME[-8:]


def test_how_others_reach_us_is_said_again_for_another_way_and_not_for_more_witnesses() -> None:
    lines: list[str] = []
    status = StatusLines(lines.append, lambda _: None, SPEC)
    found = Verdict(True, True, tried=1, reached=1, at=("/ip4/11.0.0.1/tcp/4001",), seen="11.0.0.1")
    status.reach(ReachState(is_private=False, verdict=found))
    status.reach(ReachState(is_private=False, verdict=replace(found, tried=3, reached=3)))
    assert len(lines) == 1
    status.reach(ReachState(is_private=False, verdict=replace(found, at=("/ip4/11.0.0.2/tcp/1",))))
    status.reach(ReachState(is_private=True, verdict=replace(found, is_reachable=False)))
    assert len(lines) == 3
