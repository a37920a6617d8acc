"""Units on many machines: a store between them, shards of units, the agent that runs one and the parent that sends and gathers."""
