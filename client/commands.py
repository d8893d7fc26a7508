"""Commands of a person who asks: generate, chat, status, plan and demo."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from client.background import Background
from client.chat import run_chat
from client.connection import TIMEOUT_SECONDS, Client, Connect, open_links
from client.invitation import choose_invite, own_environment
from client.live_plan import find_plan, read_plan
from client.overview import find_overview, why_idle
from client.pictures import (
    DrawLayers,
    show_idle,
    show_peers,
    show_plan,
    show_plan_table,
    show_planner,
    show_stages,
)
from client.plain import answer
from client.request import Options, Question
from client.screen import Screen
from swarm.command_line import Parser
from swarm.errors import BadInput
from swarm.invites import Invite

KNOWN_SECONDS = 5.0  # after which an empty board is that of a swarm that nobody knows
TYPED = {"timeout_seconds": "--timeout"}  # options whose name on a command line is another


def main(arguments: Sequence[str], draw: DrawLayers, connect: Connect = open_links) -> int:
    """Run one command; returns the exit code; raises SwarmError."""
    given = parser().parse_args(arguments)
    try:
        return _run(given, draw, connect)
    except BadInput as error:
        if not error.option:
            raise
        raise _as_typed(error) from error


def _run(given: argparse.Namespace, draw: DrawLayers, connect: Connect) -> int:
    run = {"generate": run_generate, "chat": run_chat_command, "status": run_status}
    screen = Screen()
    if given.command == "plan":
        return run_plan(given, screen, connect, draw)
    return run[given.command](given, screen, connect)


def parser() -> Parser:
    """The command line of all commands here."""
    made = Parser(prog="swarm")
    commands = made.add_subparsers(dest="command", required=True, parser_class=Parser)
    generate = commands.add_parser("generate", help="ask once")
    generate.add_argument("prompt", help="the text to go on with")
    generate.add_argument("--json", action="store_true", help="one JSON object, no text")
    generate.add_argument("--no-stream", action="store_true", help="show the text when complete")
    _add_sampling(generate)
    _add_sampling(commands.add_parser("chat", help="talk, line by line; Ctrl-D ends"))
    for name, what in (("status", "who is there and what they serve"), ("plan", "the plan")):
        look = commands.add_parser(name, help=what)
        look.add_argument("--json", action="store_true", help="one JSON object")
    for each in commands.choices.values():
        _add_swarm(each)
    return made


def run_generate(given: argparse.Namespace, screen: Screen, connect: Connect) -> int:
    """`swarm generate PROMPT`."""
    client = client_of(given, connect)
    question = Question(given.prompt, None, given.timeout, options_of(given))
    is_streamed = screen.is_terminal and not (given.json or given.no_stream)
    with Background() as background:
        shown = screen.piece if is_streamed else None
        generation = background.run(answer(client, question, shown))
    if given.json:
        screen.json(generation.to_json())
    else:
        screen.piece("\n" if is_streamed else generation.text + "\n")
    return 0


def run_chat_command(given: argparse.Namespace, screen: Screen, connect: Connect) -> int:
    """`swarm chat`."""
    run_chat(client_of(given, connect), screen, given.timeout, options_of(given))
    return 0


def run_status(given: argparse.Namespace, screen: Screen, connect: Connect) -> int:
    """`swarm status`."""
    invite = invite_of(given)
    with Background() as background, background.hold(connect(invite)) as links:
        overview = background.run(find_overview(links.board, invite, KNOWN_SECONDS))
        why = why_idle(overview, background.run(find_plan(links.board, links.channel)))
    if given.json:
        screen.json(overview.to_json() | {"idle": why})
        return 0
    screen.head(f"{overview.swarm} serves {overview.model}")
    show_planner(screen, overview)
    show_peers(screen, overview)
    show_stages(screen, overview)
    show_idle(screen, overview, why)
    return 0


def run_plan(given: argparse.Namespace, screen: Screen, connect: Connect, draw: DrawLayers) -> int:
    """`swarm plan`."""
    invite = invite_of(given)
    with Background() as background, background.hold(connect(invite)) as links:
        overview = background.run(find_overview(links.board, invite, KNOWN_SECONDS))
        live = background.run(read_plan(links.board, links.channel))
    if given.json:
        screen.json(live.document)
        return 0
    show_plan(screen, live, overview, draw)
    show_plan_table(screen, live, overview)
    return 0


def _as_typed(error: BadInput) -> BadInput:
    """The same complaint under the option's name on a command line."""
    typed = TYPED.get(error.option, "--" + error.option.replace("_", "-"))
    return BadInput(error.cause.replace(error.option, typed, 1), error.next_step)


def options_of(given: argparse.Namespace) -> Options:
    """The sampling options that a command line names."""
    named = {name: getattr(given, name) for name in Options.__annotations__}
    return cast("Options", {n: value for n, value in named.items() if value is not None})


def invite_of(given: argparse.Namespace) -> Invite:
    """The invite of a command line, or what stands in for it; raises BadInvite."""
    return choose_invite(given.join, own_environment(), given.state)


def client_of(given: argparse.Namespace, connect: Connect) -> Client:
    """A client as a command line wants it, not yet connected."""
    raw_bytes = given.raw_bytes
    return Client(invite_of(given), model=given.model, connect=connect, raw_bytes=raw_bytes)


def _add_swarm(made: argparse.ArgumentParser) -> None:
    made.add_argument("--join", metavar="INVITE", help="else $SWARM_INVITE, or the last one")
    made.add_argument("--state", type=Path, metavar="FOLDER", help="where the last invite is")


def _add_sampling(made: argparse.ArgumentParser) -> None:
    made.add_argument("--model", metavar="NAME", help="this machine's copy, if it has another name")
    made.add_argument("--raw-bytes", action="store_true", help="ids are bytes: no tokenizer")
    made.add_argument("--max-tokens", type=int, default=64, metavar="N")
    made.add_argument("--temperature", type=float, metavar="T", help="0, the default, is greedy")
    made.add_argument("--top-k", type=int, metavar="K")
    made.add_argument("--top-p", type=float, metavar="P")
    made.add_argument("--min-p", type=float, metavar="P")
    made.add_argument("--repetition-penalty", type=float, metavar="R")
    made.add_argument("--seed", type=int, metavar="S")
    made.add_argument("--stop", action="append", metavar="TEXT", help="may be given repeatedly")
    made.add_argument("--speculate", type=int, metavar="N", help="ids to guess ahead; 0 is off")
    made.add_argument(
        *("--timeout",),
        type=float,
        default=TIMEOUT_SECONDS,
        metavar="SECONDS",
        help="of no progress",
    )
