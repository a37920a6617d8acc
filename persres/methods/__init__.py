"""The training methods, one per file, each with its settings; ``common/`` holds the shared code."""
