"""The commands `swarm plan` and `swarm simulate`, and what they draw."""
