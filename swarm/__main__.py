"""`python -m swarm` is the command `swarm`."""

from swarm.cli import run

if __name__ == "__main__":
    run()
