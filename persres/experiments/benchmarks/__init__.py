"""What the speed of each idea is measured by: one idea a file."""
