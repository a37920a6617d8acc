"""Fuzzers: damaged input for every reader of files and names from outside."""
