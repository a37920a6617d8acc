"""What the methods share: their protocol, the registry that finds them, and the work of a unit that trains or draws."""
