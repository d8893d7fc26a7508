"""`swarm ...`: looks up the package that a command belongs to, and says errors in one sentence."""

import sys
from collections.abc import Sequence
from typing import NoReturn

from swarm import __version__
from swarm.commands.command_line import carry_out, read_arguments, suggestion
from swarm.commands.entry_points import import_package, leave
from swarm.commands.hidden_torch import ASKING, hide_torch
from swarm.errors import BadInput
from swarm.formatting import log_printably
from swarm.node import run_node

COMMANDS = {
    "demo": "four unlike nodes on this machine: join, plan, generate, compare",
    "node": "share this machine's devices (--host starts a swarm, --join INVITE joins one)",
    "pause": "give this machine's devices back to you; the node stays a member (--for 2h)",
    "resume": "let the node on this machine serve again",
    "leave": "let the node on this machine leave its swarm, and end",
    "relay": "carry connections to nodes behind routers; a machine with a public address, no model",
    "generate": "ask a swarm once",
    "chat": "talk with a swarm",
    "serve": "answer other people's clients over HTTP: OpenAI's API and others",
    "status": "who is in a swarm, what they serve, who plans",
    "invite": "a fresh invite to a swarm that this machine is in; --qr shows it for a camera",
    "revoke": "end the membership of a peer's machine in a private swarm",
    "plan": "the plan that a swarm follows, or one for --instance of a file",
    "simulate": "play a plan through without a network",
}
HELP = frozenset({"-h", "--help"})


def run() -> NoReturn:
    """Run the command of this process and end it."""
    log_printably()
    if not ASKING.isdisjoint(sys.argv[1:2]):
        hide_torch()
    leave(main())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 for a failure, 2 for bad input."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return carry_out(
        lambda: _run(read_arguments(given)), needs_output=given[:1] not in (["node"], ["relay"])
    )


def _run(given: list[str]) -> int:
    command = given[0] if given else "--help"
    if command in {*HELP, "help"}:
        sys.stdout.write(_usage())
        return 0
    if command == "--version":
        sys.stdout.write(f"swarm {__version__}\n")
        return 0
    if command not in COMMANDS:
        meant = suggestion(command, COMMANDS)
        raise BadInput(
            f"There is no command {command!r}.{meant}", f"Commands: {', '.join(COMMANDS)}."
        )
    return _call(command, given)


def _call(command: str, given: list[str]) -> int:
    rest = given[1:]
    if command == "node":
        return run_node(rest, "swarm node")
    if command == "relay":
        return int(import_package("node.network.relay_peer").main(rest))
    if command == "plan" and not HELP.isdisjoint(rest):
        return int(import_package("planner.cli.commands").main([command, "--help"]))
    if command == "simulate" or (command == "plan" and _names_instance(rest)):
        return int(import_package("planner.cli.commands").main(given))
    draw = import_package("planner.cli.text_chart").layers_picture
    if command == "demo":
        return int(import_package("client.cli.demo_command").main(rest, draw))
    return int(import_package("client.cli.commands").main(given, draw))


def _names_instance(rest: Sequence[str]) -> bool:
    return any(word.partition("=")[0] == "--instance" for word in rest)


def _usage() -> str:
    lines = [f"  {name:<10} {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        ("usage: swarm COMMAND ...", "", *lines, "", "swarm COMMAND --help says more.\n")
    )
