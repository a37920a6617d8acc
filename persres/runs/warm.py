"""Imported first by the process that workers are forked from: Ctrl-C, which a terminal sends to all, is for their parent alone."""

import signal

signal.signal(signal.SIGINT, signal.SIG_IGN)
