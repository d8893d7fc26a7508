"""What travels between peers: messages, their encoding, and the version of both."""
