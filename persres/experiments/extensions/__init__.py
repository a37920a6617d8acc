"""Past the paper: what ``persres beyond PART`` measures, one file a part, each with its claims and what must fall with them."""
