"""Models as files: in folders, on the hub, at peers; which bytes a shard needs of them."""
