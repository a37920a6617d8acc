"""The golden run: committed figures of a small run of everything, to see when the code computes something else."""
