"""Study: LAG by prompt."""
