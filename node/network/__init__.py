"""How this node stands in the network: joining, relays, direct connections, measured links."""
