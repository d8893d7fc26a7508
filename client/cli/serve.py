"""The command `serve`: a swarm behind the HTTP APIs that other people's clients speak."""

import argparse
import asyncio
import importlib.util
import ipaddress
import logging
import socket

import uvloop

from client.async_client import Client
from client.cli.ask import client_of
from client.cli.terminal import Terminal
from client.network import Connect
from swarm.errors import BadInput
from swarm.state_folder import own_environment

NEEDED = ("fastapi", "uvicorn", "prometheus_client")
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


def run_serve(given: argparse.Namespace, terminal: Terminal, connect: Connect) -> int:
    """`swarm serve`: until SIGINT or SIGTERM."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise BadInput(
            f"`swarm serve` needs {', '.join(missing)}.",
            "Install what it needs: pip install 'hexgen-swarm[gateway]'.",
        )
    from client.gateway.server import listen

    logging.getLogger("client.gateway").setLevel(given.log_level.upper())
    client = client_of(given, connect)
    with listen(given.host, given.port) as sock, _runner() as runner:
        runner.run(_serve(client, given, sock, terminal))
    return 0


async def _serve(
    client: Client, given: argparse.Namespace, sock: socket.socket, terminal: Terminal
) -> None:
    """Connect, and answer until a signal comes; raises SwarmError."""
    from client.gateway.app import make_app
    from client.gateway.http.settings import GatewaySettings
    from client.gateway.server import serve

    settings = GatewaySettings(
        names=tuple(given.served_model_name),
        api_keys=api_keys_of(given),
        requests_per_minute=given.requests_per_minute,
        allowed_hosts=allowed_hosts_of(given),
        allowed_origins=frozenset(given.allowed_origins),
        max_model_len=given.max_model_len,
        timeout_seconds=given.timeout,
        most_running=given.max_num_seqs,
    )
    async with client:
        name = (*settings.names, (await client.model()).spec.name)[0]
        where = f"http://{_host_of(sock)}:{sock.getsockname()[1]}/v1"
        app = make_app(client, settings)
        await serve(app, sock, lambda: terminal.line(f"serving {name} at {where}"))


def api_keys_of(given: argparse.Namespace) -> tuple[str, ...]:
    """The keys that open: those named, else $SWARM_API_KEY; raises BadInput on an open door."""
    named = tuple(given.api_key) or tuple(filter(None, [own_environment().get("SWARM_API_KEY")]))
    if not named and not given.no_api_key and not _is_loopback(given.host):
        raise BadInput(
            f"Everybody who reaches {given.host} could ask without a key.",
            "Give --api-key KEY, or say --no-api-key if that is meant.",
        )
    return named


def allowed_hosts_of(given: argparse.Namespace) -> frozenset[str]:
    """Names for this server; on loopback no others, or any web page could ask by a name of its own.

    With a key every name will do: such a page does not know it.
    """
    if given.allowed_hosts or api_keys_of(given) or not _is_loopback(given.host):
        return frozenset(given.allowed_hosts)
    return frozenset({*LOOPBACK_NAMES, given.host})


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _host_of(sock: socket.socket) -> str:
    host = str(sock.getsockname()[0])
    return f"[{host}]" if ":" in host else host


def _runner() -> "asyncio.Runner":
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)
