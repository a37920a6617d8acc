"""Shared by all methods: the protocol, the registry, and the work of training and sampling units."""
