"""The command line of `swarm demo`: read before anything heavy is loaded."""

from collections.abc import Callable, Sequence

from swarm.commands.command_line import Parser, seconds_of

PROMPT = "Once upon a time"
READY_SECONDS = 300.0  # the first time kernels are compiled, which takes a slow machine long


def main(arguments: Sequence[str], draw: Callable[..., str]) -> int:
    """Read the options, then load and run the demo; returns its exit code."""
    given = parser().parse_args(arguments)
    from client.cli.demo import run_demo  # loads torch, transformers and the network

    return run_demo(given, draw)


def parser() -> Parser:
    """The options of the demo."""
    made = Parser(prog="swarm demo", description="Four unlike nodes on this machine, checked.")
    made.add_argument("--json", action="store_true", help="one JSON object")
    made.add_argument("--max-tokens", type=int, default=48, metavar="N", help="default: 48")
    made.add_argument("--prompt", default=PROMPT, metavar="TEXT", help=f"default: {PROMPT}")
    made.add_argument(
        *("--timeout",),
        type=seconds_of,
        default=READY_SECONDS,
        metavar="SECONDS",
        help=f"for the nodes to become ready (default: {READY_SECONDS:.0f})",
    )
    return made
