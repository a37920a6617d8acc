"""Study: masks."""
