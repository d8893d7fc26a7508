"""What the owner of this machine wants of its node: pauses, orders over a socket, a look at it."""
