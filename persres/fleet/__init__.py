"""Units on many machines: a store, shards of units, the worker that runs a shard, and the scheduler that sends shards and gathers results."""
