"""Study: early stopping."""
