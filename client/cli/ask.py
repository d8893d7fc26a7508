"""The commands `generate` and `chat`: ask a swarm once, or talk with it."""

import argparse
import sys
from typing import cast

from client.api import answer
from client.async_client import Client
from client.cli.chat import Chat, run_chat
from client.cli.look import invite_of
from client.cli.terminal import Terminal
from client.event_loop_thread import EventLoopThread
from client.network import Connect
from client.request import Options, Question
from swarm.errors import BadInput

LONGEST_PROMPT = 1 << 24  # bytes that are piped in


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
