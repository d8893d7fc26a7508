"""The commands `generate` and `chat`: ask a swarm once, or talk with it."""

import argparse
import sys
from typing import cast

from client.api import answer
from client.async_client import Client
from client.cli.chat import Chat, run_chat
from client.cli.look import invite_of
from client.cli.own_answer import OwnModel, Pieces, own_model
from client.cli.terminal import Terminal
from client.event_loop_thread import EventLoopThread
from client.network import Connect
from client.request import Options, Question
from swarm.errors import BadInput
from swarm.state_folder import own_environment, state_folder

LONGEST_PROMPT = 1 << 24  # bytes that are piped in


def run_generate(given: argparse.Namespace, terminal: Terminal, connect: Connect) -> int:
    """`swarm generate PROMPT`: through the node on this machine, if it can be, else as a client."""
    question = Question(prompt_of(given.prompt), None, given.timeout, options_of(given))
    is_streamed = terminal.is_terminal and not (given.json or given.no_stream)
    pieces = Pieces(terminal.piece if is_streamed else None)
    own = _own_model(given)
    generation = own and own.answer(question, pieces)
    if not generation:
        with EventLoopThread() as loop_thread:
            generation = loop_thread.run(answer(client_of(given, connect), question, pieces))
    if given.json:
        terminal.json(generation.to_json())
    else:
        terminal.piece("\n" if is_streamed else generation.text + "\n")
        if is_streamed and generation.finish_reason == "length":
            count = len(generation.token_ids)
            terminal.note(f"(cut at {count} tokens; --max-tokens N allows others)")
    return 0


def _own_model(given: argparse.Namespace) -> OwnModel | None:
    """The model by the node on this machine; None if something asks for a client of its own.

    An invite on the command line may be of any swarm, and what --model names may be another copy.
    Nobody but this client chooses its --trusted-ends, and shows whose it is with --introduce.
    """
    if given.join or given.model or given.trusted_ends or given.introduce:
        return None
    state, swarm = given.state or state_folder(own_environment()), invite_of(given).swarm
    return own_model(state, swarm, raw_bytes=given.raw_bytes)


def run_chat_command(given: argparse.Namespace, terminal: Terminal, connect: Connect) -> int:
    """`swarm chat`."""
    client = client_of(given, connect)
    chat = Chat(client, given.timeout, options_of(given), given.system)
    return run_chat(client, terminal, chat)


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
    named = {name: getattr(given, name, None) for name in Options.__annotations__}
    return cast("Options", {n: value for n, value in named.items() if value is not None})


def client_of(given: argparse.Namespace, connect: Connect) -> Client:
    """A client as a command line wants it, not yet connected."""
    return Client(
        invite_of(given),
        model=given.model,
        connect=connect,
        raw_bytes=given.raw_bytes,
        trusted_ends=given.trusted_ends,
    )
