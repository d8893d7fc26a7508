"""The board that all peers read: records in hivemind's DHT, and what keeps them honest."""

from swarm.p2p import lazy_hivemind

lazy_hivemind.install()
