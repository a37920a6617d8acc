"""The embedded mini world: drawn scenes, and small models really trained on them."""
