"""Channels between peers: streams, questions, and the daemon that carries them."""

from swarm.p2p import lazy_hivemind

lazy_hivemind.install()
