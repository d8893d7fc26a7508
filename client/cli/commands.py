"""Commands of a person who asks: generate, chat, status, plan and demo."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from client.api import answer
from client.async_client import TIMEOUT_SECONDS, Client, Connect, open_links
from client.cli.chat import Chat, run_chat
from client.cli.swarm_status import find_status, why_idle
from client.cli.tables import (
    DrawLayers,
    show_idle,
    show_peers,
    show_plan,
    show_plan_table,
    show_planner,
    show_stages,
)
from client.cli.terminal import Terminal
from client.event_loop_thread import EventLoopThread
from client.request import Options, Question
from client.routing.live_plan import find_plan, read_plan, trust_of
from swarm.commands.command_line import Parser
from swarm.errors import BadInput
from swarm.invites import Invite, choose_invite
from swarm.state_folder import own_environment

GENERATED_TOKENS = 64
LONGEST_PROMPT = 1 << 24  # bytes that are piped in
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
    terminal = Terminal()
    if given.command == "plan":
        return run_plan(given, terminal, connect, draw)
    return run[given.command](given, terminal, connect)


def parser() -> Parser:
    """The command line of all commands here."""
    made = Parser(prog="swarm")
    commands = made.add_subparsers(dest="command", required=True, parser_class=Parser)
    generate = commands.add_parser("generate", help="ask once")
    generate.add_argument(
        "prompt", nargs="?", help="the text to go on with; - or none: what is piped in"
    )
    generate.add_argument("--json", action="store_true", help="one JSON object, no text")
    generate.add_argument("--no-stream", action="store_true", help="show the text when complete")
    _add_sampling(generate, max_tokens=GENERATED_TOKENS)
    chat = commands.add_parser("chat", help="talk, line by line; Ctrl-D ends")
    chat.add_argument("--system", metavar="TEXT", default="", help="what the model should be")
    _add_sampling(chat, max_tokens=None)
    for name, what in (("status", "who is there and what they serve"), ("plan", "the plan")):
        look = commands.add_parser(name, help=what)
        look.add_argument("--json", action="store_true", help="one JSON object")
    for each in commands.choices.values():
        _add_swarm(each)
    return made


def run_generate(given: argparse.Namespace, terminal: Terminal, connect: Connect) -> int:
    """`swarm generate PROMPT`."""
    prompt, client = prompt_of(given.prompt), client_of(given, connect)
    question = Question(prompt, None, given.timeout, options_of(given))
    is_streamed = terminal.is_terminal and not (given.json or given.no_stream)
    with EventLoopThread() as loop_thread:
        shown = terminal.piece if is_streamed else None
        generation = loop_thread.run(answer(client, question, shown))
    if given.json:
        terminal.json(generation.to_json())
    else:
        terminal.piece("\n" if is_streamed else generation.text + "\n")
        if is_streamed and generation.finish_reason == "length":
            count = len(generation.token_ids)
            terminal.note(f"(cut at {count} tokens; --max-tokens N allows others)")
    return 0


def run_chat_command(given: argparse.Namespace, terminal: Terminal, connect: Connect) -> int:
    """`swarm chat`."""
    client = client_of(given, connect)
    chat = Chat(client, given.timeout, options_of(given), given.system)
    return run_chat(client, terminal, chat)


def run_status(given: argparse.Namespace, terminal: Terminal, connect: Connect) -> int:
    """`swarm status`."""
    invite = invite_of(given)
    with EventLoopThread() as loop_thread, loop_thread.hold(connect(invite)) as links:
        status = loop_thread.run(find_status(links.board, invite, KNOWN_SECONDS))
        why = why_idle(
            status, loop_thread.run(find_plan(links.board, links.channel, trust_of(invite)))
        )
    if given.json:
        terminal.json(status.to_json() | {"idle": why})
        return 0
    terminal.head(f"{status.swarm} serves {status.model}")
    show_planner(terminal, status)
    show_peers(terminal, status)
    show_stages(terminal, status)
    show_idle(terminal, status, why)
    return 0


def run_plan(
    given: argparse.Namespace, terminal: Terminal, connect: Connect, draw: DrawLayers
) -> int:
    """`swarm plan`."""
    invite = invite_of(given)
    with EventLoopThread() as loop_thread, loop_thread.hold(connect(invite)) as links:
        status = loop_thread.run(find_status(links.board, invite, KNOWN_SECONDS))
        live = loop_thread.run(read_plan(links.board, links.channel, trust_of(invite)))
    if given.json:
        terminal.json(live.document)
        return 0
    show_plan(terminal, live, status, draw)
    show_plan_table(terminal, live, status)
    return 0


def _as_typed(error: BadInput) -> BadInput:
    """The same complaint under the option's name on a command line."""
    typed = TYPED.get(error.option, "--" + error.option.replace("_", "-"))
    return BadInput(error.cause.replace(error.option, typed, 1), error.next_step)


def prompt_of(given: str | None) -> str:
    """The prompt of a command line, or what is piped in, less the newline at its end."""
    if given not in (None, "-"):
        return str(given)
    if given is None and sys.stdin.isatty():
        raise BadInput("There is no prompt.", "Write one, or pipe one in; see --help.")
    data = sys.stdin.buffer.read(LONGEST_PROMPT + 1)
    if len(data) > LONGEST_PROMPT:
        raise BadInput("The prompt is too long.", f"Pipe in {LONGEST_PROMPT} bytes at the most.")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise BadInput(
            f"The prompt is not valid UTF-8 at byte {error.start + 1}.", "Pipe in UTF-8 text."
        ) from error
    return text.removesuffix("\n").removesuffix("\r")


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


def _add_sampling(made: argparse.ArgumentParser, max_tokens: int | None) -> None:
    made.add_argument("--model", metavar="NAME", help="this machine's copy, if it has another name")
    made.add_argument("--raw-bytes", action="store_true", help="bytes are ids, without tokenizer")
    made.add_argument("--max-tokens", type=int, default=max_tokens, metavar="N")
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
        help=f"give up after so long without progress (default: {TIMEOUT_SECONDS:g})",
    )
