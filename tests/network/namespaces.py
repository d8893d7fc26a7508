"""Commands that build networks, run with a deadline, and why a laboratory cannot be had."""

import subprocess

COMMAND_SECONDS = 20.0


class NoLaboratory(Exception):
    """This machine cannot build one; says why."""


class LaboratoryError(Exception):
    """A command of the laboratory failed; says which, and what it said."""


def run(*words: str, text: str = "") -> str:
    """Run a command with this text on its standard input; returns what it prints."""
    try:
        done = subprocess.run(
            words, input=text, capture_output=True, text=True, timeout=COMMAND_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LaboratoryError(f"{' '.join(words)}: {error}") from error
    if done.returncode:
        raise LaboratoryError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def run_in(namespace: str, *words: str, text: str = "") -> str:
    """Run a command on the network of a namespace."""
    return run("ip", "netns", "exec", namespace, *words, text=text)
