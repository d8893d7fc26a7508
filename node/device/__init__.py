"""Each device of this machine, driven to the shard that the plan assigns to it."""
