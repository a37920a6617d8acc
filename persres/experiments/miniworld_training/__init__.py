"""The mini world's models, trained from nothing."""
