"""The methods that learn a concept: each file here is one, its settings included (``common/`` holds what they share)."""
