"""Imported first by the process that workers are forked from.

Ctrl-C, which a terminal sends to all, is for their parent alone. And that process must not start CUDA, which no fork of it could use
then: diffusers asks on import whether there is a GPU, and torch answers without CUDA only when told so.
"""

import os
import signal

signal.signal(signal.SIGINT, signal.SIG_IGN)
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
