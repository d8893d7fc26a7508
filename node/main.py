"""`python -m swarm.node` once its command line is read: lives as a node, prints what happens."""

import asyncio
import logging
import os
import resource
import signal
import time
from collections.abc import Awaitable
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any, TypeVar

import psutil
import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from node.config import NodeConfig
from node.device.open_devices import detected_devices, measured_devices, open_workers
from node.network.bootstrap import NodeNetwork, invite_of, open_network
from node.network.reachability import find_relays
from node.node import Node
from node.owner.control_server import Answers, open_control
from node.owner.orders import Orders
from node.owner.owner_control import OwnerControl
from node.owner.owner_questions import LoadClient, OwnerQuestions
from node.owner.pause_rules import rules_of
from node.owner.pauses import Pauses
from node.probe import memory_words
from node.served_model import ServedModel, find_served_once_joined, manifest_of, read_founded
from node.serving.stage_server import DRAIN_SECONDS
from node.status_lines import StatusLines, reach_of
from node.worker.standby_handle import CALM_SECONDS, StandbyWorker
from swarm.commands.command_line import say_error
from swarm.errors import SwarmError
from swarm.formatting import accept_any_text, log_printably, printable
from swarm.p2p.addresses import is_enclosed
from swarm.records import Manifest
from swarm.state_folder import remember_model
from swarm.task_set import TaskSet, supervise

logger = logging.getLogger(__name__)

FILES = 65536
ENDING = (signal.SIGINT, signal.SIGTERM)
PAUSE, RESUME = signal.SIGUSR1, signal.SIGUSR2
LONGEST_LINE = 1 << 16  # characters: invites are long
LEAVE_SECONDS = DRAIN_SECONDS + 4.5  # from the signal to the end, whatever happens
T = TypeVar("T")


class Terminal:
    """Lines, and a bar while a shard loads; plain lines when nobody watches."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True, emoji=False)
        columns = (TextColumn("load:"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
        self._progress = Progress(*columns, console=self._console, transient=True)
        self._task = self._progress.add_task("load", total=1.0)

    def say(self, line: str) -> None:
        """Print one line, strangers' words in it escaped; the node lives on if nobody can read."""
        shown = printable(line, LONGEST_LINE)
        with suppress(OSError):  # a full disk, or a reader who has gone
            if self._console.is_terminal:
                word, colon, rest = shown.partition(":")
                self._console.print(Text.assemble((word + colon, "bold cyan"), rest))
            else:
                print(shown, flush=True)

    def show_progress(self, fraction: float) -> None:
        """Show how much of a shard is loaded; 1.0 ends the bar."""
        if not self._console.is_terminal or self._console.is_dumb_terminal:
            return
        if fraction < 1.0:
            self._progress.start()
            self._progress.update(self._task, completed=fraction)
        else:
            self._progress.stop()


async def live(
    config: NodeConfig,
    terminal: Terminal,
    load_client: LoadClient | None = None,
    *,
    calm_seconds: float = CALM_SECONDS,
) -> None:
    """Be a node until SIGINT or SIGTERM, for its owner's questions, too; raises SwarmError."""
    stop = asyncio.Event()
    asyncio.get_running_loop().set_exception_handler(hear_loop)
    pauses = hear_signals(stop)
    invite_of(config)  # refused before anything is opened
    detected = await asyncio.to_thread(detected_devices, config)  # refused before we join
    async with AsyncExitStack() as stack:
        standby = StandbyWorker(detected[0].kind, calm_seconds=calm_seconds)
        stack.push_async_callback(standby.close)
        workers = await stack.enter_async_context(open_workers(config, detected, standby))
        describe = workers[0].describe
        tasks = await stack.enter_async_context(TaskSet())
        founding = None
        if config.founds:  # read while the network opens
            reading = read_founded(config, describe)
            founding = tasks.create("reading the model", reading, is_awaited=True)
        manifest = partial(_manifest, founding) if founding else None
        network = await stack.enter_async_context(open_network(config, manifest, terminal.say))
        if network.held:
            await find_relays(network.held, network.board)
        finding = founding or find_served_once_joined(network, config.state, describe)
        served = await unless_stopped(finding, stop)
        if served is None:
            return
        if config.founds and served.is_folder:
            remember_model(config.state, network.invite.swarm, served.folder)
        status = StatusLines(terminal.say, terminal.show_progress, served.spec)
        introduce(config, network, status)
        node = Node(config, served, network, status)
        control = OwnerControl(pauses, node, standby.close, status, rules_of(config))
        orders = Orders(control, node, network.board, partial(_stop, stop))
        asked = hear_questions(orders, network, served, node, load_client)
        await stack.enter_async_context(open_control(network.folder, orders.carry_out, asked))
        measuring = measured_devices(config, served, detected, workers)
        devices = await unless_stopped(measuring, stop)
        if devices is None:
            return
        for each in devices:
            limits = config.memory_bytes, config.memory_share
            status.offer(each.device, memory_words(each.device, *limits))
        keep = supervise("keeping a standby worker", partial(standby.keep, node.is_calm))
        tasks.create("keeping a standby worker", keep)
        tasks.create("hearing the owner", supervise("hearing the owner", control.run))
        await node.run(devices, stop)


def hear_signals(stop: asyncio.Event) -> Pauses:
    """End by SIGINT and SIGTERM, pause by SIGUSR1 and resume by SIGUSR2, from now on."""
    loop, pauses = asyncio.get_running_loop(), Pauses()
    for number in ENDING:
        loop.add_signal_handler(number, _stop, stop)
    loop.add_signal_handler(PAUSE, lambda: pauses.pause(time.monotonic()))
    loop.add_signal_handler(RESUME, pauses.resume)
    return pauses


def hear_questions(
    orders: Orders,
    network: NodeNetwork,
    served: ServedModel,
    node: Node,
    load_client: LoadClient | None,
) -> dict[str, Answers]:
    """Let the owner's programs ask the swarm through this node, if a client can be loaded."""
    if load_client is None:
        return {}
    questions = OwnerQuestions(network.invite.swarm, served, load_client, node.host)
    orders.add("model", questions.model)
    return {"generate": questions.generate}


def introduce(config: NodeConfig, network: NodeNetwork, status: StatusLines) -> None:
    """Say who we are, in which swarm, and how others join it."""
    name = config.name or "unnamed"
    status.introduce(name, network.channel.peer, reach_of(network.addresses, config.announce))
    status.swarm(network.invite.swarm)
    if config.founds:
        status.invite(network.invite_for_others().encode())
        if network.invite.key and network.admissions is None:
            status.uncertified()
        if is_enclosed(network.invite.addresses):
            status.enclosed()
        status.asked(network.invite.swarm, network.last_swarm)


async def _manifest(founding: Awaitable[ServedModel]) -> Manifest:
    return manifest_of(await founding)


async def unless_stopped(work: Awaitable[T], stop: asyncio.Event) -> T | None:
    """What `work` returns, or None if `stop` is set before it ends: then it is cancelled."""
    async with TaskSet() as tasks:
        working = tasks.create("starting", _outcome_of(work), is_awaited=True)
        stopping = tasks.create("waiting for the end", stop.wait(), is_awaited=True)
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None


async def _outcome_of(work: Awaitable[T]) -> T:
    return await work


def main(config: NodeConfig, load_client: LoadClient | None = None) -> int:
    """Run a node; returns the exit code, and leaves this process's signals as they were."""
    log_printably()
    accept_any_text()
    _raise_file_limit()
    before = {number: signal.getsignal(number) for number in (*ENDING, PAUSE, RESUME)}
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(live(config, Terminal(), load_client))
    except SwarmError as error:
        say_error(error)
        return error.exit_code
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
    return 0


def hear_loop(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Pass over streams that a peer drops at once, or that we give up: nothing is wrong."""
    error = context.get("exception")
    if isinstance(error, asyncio.CancelledError):  # asyncio's streams before 3.12 report it so
        logger.debug("a stream was given up: %s", context.get("message"))
        return
    dropped = isinstance(error, asyncio.IncompleteReadError | ConnectionError)
    if dropped and "client_connected_cb" in str(context.get("message")):
        logger.debug("a peer dropped a stream before it said what it wants")
    else:
        loop.default_exception_handler(context)


def _stop(stop: asyncio.Event) -> None:
    """Leave, or end at once if told so again; whatever hangs while leaving is ended with us."""
    if stop.is_set():
        _end()
    stop.set()
    asyncio.get_running_loop().call_later(LEAVE_SECONDS, _end)


def _end() -> None:
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(0)


def _raise_file_limit() -> None:
    """Every stream costs a file: take what the system allows."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most if most != resource.RLIM_INFINITY else FILES
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, FILES), most))
