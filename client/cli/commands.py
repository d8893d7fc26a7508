"""The command lines of all that a client does: read before anything heavy is loaded."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from client.network import Connect, open_links
from client.session.deadlines import TIMEOUT_SECONDS
from swarm.commands.command_line import Parser, duration_of
from swarm.errors import BadInput
from swarm.state_folder import own_environment, state_folder

GENERATED_TOKENS = 64
ORDERS = {  # of which the node on this machine hears
    "pause": "give this machine's devices back to you",
    "resume": "let the node on this machine serve again",
    "leave": "let the node on this machine leave its swarm, and end",
}
HTTP_PORT, MOST_SEQUENCES = 8000, 128
LOG_LEVELS = ("debug", "info", "warning", "error")
INVITED_SECONDS = 7 * 86400.0
TYPED = {"timeout_seconds": "--timeout"}  # options whose name on a command line is another


def main(arguments: Sequence[str], draw: Callable[..., str], connect: Connect | None = None) -> int:
    """Run one command; returns the exit code; raises SwarmError."""
    given = parser().parse_args(arguments)
    state = given.state or state_folder(own_environment())
    try:
        if given.command in ORDERS:
            return _give_order(given, state)
        return _run(
            given, draw, connect or partial(open_links, state=state, introduce=given.introduce)
        )
    except BadInput as error:
        if not error.option:
            raise
        raise _as_typed(error) from error


def _run(given: argparse.Namespace, draw: Callable[..., str], connect: Connect) -> int:
    """Load what this command needs, and nothing else: a look at a swarm needs no model."""
    from client.cli.terminal import Terminal

    if given.command == "invite":
        from client.cli.invite import run_invite

        return run_invite(given, Terminal(), connect)
    if given.command == "revoke":
        from client.cli.revoke import run_revoke

        return run_revoke(given, Terminal(), connect)
    if given.command in ("status", "plan"):
        from client.cli.look import run_plan, run_status

        if given.command == "plan":
            return run_plan(given, Terminal(), connect, draw)
        return run_status(given, Terminal(), connect)
    if given.command == "serve":
        from client.cli.serve import run_serve

        return run_serve(given, Terminal(), connect)
    from client.cli.ask import run_chat_command, run_generate

    run = run_chat_command if given.command == "chat" else run_generate
    return run(given, Terminal(), connect)


def _give_order(given: argparse.Namespace, state: Path) -> int:
    """Speak with the node on this machine: nothing of a network is loaded."""
    from client.cli.orders import run_order
    from client.cli.terminal import Terminal

    return run_order(given, Terminal(), state)


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
    _add_server(commands.add_parser("serve", help="answer clients of OpenAI's API and others"))
    for name, what in (("status", "who is there and what they serve"), ("plan", "the plan")):
        look = commands.add_parser(name, help=what)
        look.add_argument("--json", action="store_true", help="one JSON object")
    _add_invite(commands.add_parser("invite", help="a fresh invite to a swarm"))
    revoke = commands.add_parser("revoke", help="end the membership of a peer's machine")
    revoke.add_argument("peer", metavar="PEER", help="its id, as `swarm status --json` shows it")
    revoke.add_argument(
        *("--with-invite",),
        action="store_true",
        help="and every other machine that the same invite has let in",
    )
    for each in commands.choices.values():
        _add_swarm(each)
    for name, what in ORDERS.items():
        _add_order(commands.add_parser(name, help=what))
    return made


def _as_typed(error: BadInput) -> BadInput:
    """The same complaint under the option's name on a command line."""
    typed = TYPED.get(error.option, "--" + error.option.replace("_", "-"))
    return BadInput(error.cause.replace(error.option, typed, 1), error.next_step)


def _add_server(made: argparse.ArgumentParser) -> None:
    """The field's own words, as far as there are any: those of vLLM."""
    _add_model(made)
    made.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen")
    made.add_argument("--port", type=int, default=HTTP_PORT, metavar="N")
    made.add_argument(
        *("--api-key",),
        action="append",
        default=[],
        metavar="KEY",
        help="what clients must show, one or several; else $SWARM_API_KEY",
    )
    made.add_argument(
        *("--requests-per-minute",),
        type=int,
        metavar="N",
        help="what each key may ask; without keys, all together",
    )
    made.add_argument("--no-api-key", action="store_true", help="let everybody ask, from anywhere")
    made.add_argument(
        *("--served-model-name",),
        nargs="+",
        default=[],
        metavar="NAME",
        help="what clients call the model; the first name is shown",
    )
    made.add_argument("--max-model-len", type=int, metavar="N", help="tokens of prompt and answer")
    made.add_argument(
        *("--max-num-seqs",),
        type=int,
        default=MOST_SEQUENCES,
        metavar="N",
        help=f"answers at once; others wait (default: {MOST_SEQUENCES})",
    )
    made.add_argument(
        *("--allowed-origins",), nargs="+", default=[], metavar="URL", help="web pages that may ask"
    )
    made.add_argument(
        *("--allowed-hosts",), nargs="+", default=[], metavar="NAME", help="names of this server"
    )
    made.add_argument("--log-level", choices=LOG_LEVELS, default="info", metavar="LEVEL")
    _add_timeout(made)


def _add_invite(made: argparse.ArgumentParser) -> None:
    made.add_argument("--once", action="store_true", help="let one machine join with it, no more")
    made.add_argument(
        "--delegate", action="store_true", help="let that machine invite and revoke others, too"
    )
    made.add_argument("--qr", action="store_true", help="show it as a QR code, too")
    made.add_argument(
        "--expires",
        type=duration_of,
        default=INVITED_SECONDS,
        metavar="TIME",
        help="how long it holds, like 12h or 30d (default: 7d)",
    )


def _add_order(made: argparse.ArgumentParser) -> None:
    if made.prog.endswith("pause"):
        made.add_argument(
            *("--for",),
            dest="seconds",
            type=duration_of,
            metavar="TIME",
            help="resume by itself after so long, like 90m or 2h",
        )
    made.add_argument(
        "--node", default="", metavar="NAME", help="which one, if several run: node-2"
    )
    made.add_argument("--state", type=Path, metavar="FOLDER", help="the node's, if it has its own")


def _add_swarm(made: argparse.ArgumentParser) -> None:
    made.add_argument("--join", metavar="INVITE", help="else $SWARM_INVITE, or the last one")
    made.add_argument("--state", type=Path, metavar="FOLDER", help="where the last invite is")
    made.add_argument(
        *("--introduce",),
        action="store_true",
        help="tell peers whose client this is: hosts that allow your node let it in",
    )


def _add_sampling(made: argparse.ArgumentParser, max_tokens: int | None) -> None:
    _add_model(made)
    made.add_argument("--max-tokens", type=int, default=max_tokens, metavar="N")
    made.add_argument("--temperature", type=float, metavar="T", help="0, the default, is greedy")
    made.add_argument("--top-k", type=int, metavar="K")
    made.add_argument("--top-p", type=float, metavar="P")
    made.add_argument("--min-p", type=float, metavar="P")
    made.add_argument("--repetition-penalty", type=float, metavar="R")
    made.add_argument("--presence-penalty", type=float, metavar="P")
    made.add_argument("--frequency-penalty", type=float, metavar="F")
    made.add_argument("--seed", type=int, metavar="S")
    made.add_argument("--stop", action="append", metavar="TEXT", help="may be given repeatedly")
    made.add_argument("--speculate", type=int, metavar="N", help="ids to guess ahead; 0 is off")
    _add_timeout(made)


def _add_model(made: argparse.ArgumentParser) -> None:
    """Whose text it is: which model reads it, and who may."""
    made.add_argument("--model", metavar="NAME", help="this machine's copy, if it has another name")
    made.add_argument("--raw-bytes", action="store_true", help="bytes are ids, without tokenizer")
    made.add_argument(
        "--trusted-ends",
        action="append",
        default=[],
        metavar="PEER",
        help="let only this peer (and others named so) see text: serve the first and last layers",
    )


def _add_timeout(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        *("--timeout",),
        type=float,
        default=TIMEOUT_SECONDS,
        metavar="SECONDS",
        help=f"give up after so long without progress (default: {TIMEOUT_SECONDS:g})",
    )
