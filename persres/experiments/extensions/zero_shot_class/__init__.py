"""Study: the zero-shot class."""
