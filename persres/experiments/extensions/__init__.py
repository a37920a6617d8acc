"""Past the paper: what ``persres dev extensions PART`` measures, one file a part, each with its claims and what must fall with them."""
