"""Imported first by the process that workers are forked from.

A terminal sends Ctrl-C to all processes; only the workers' parent handles it. And this process must not start CUDA, which its forks
could not use then: diffusers asks on import whether there is a GPU, and torch answers without CUDA only if this variable is set.
"""

import os
import signal

signal.signal(signal.SIGINT, signal.SIG_IGN)
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
