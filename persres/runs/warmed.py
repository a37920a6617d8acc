"""Imported last by the process that workers are forked from: what :mod:`persres.runs.warm` left out can be imported again."""

from persres.runs.lean import show

show()
