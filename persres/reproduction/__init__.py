"""``persres repro`` of a profile: the checks before it starts, the run, and known answers on its models."""
