"""A shard from a checkpoint: its bytes, its modules, and what a reload can keep."""
