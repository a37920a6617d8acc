"""Sampling: DDIM, masks, localized attention-guided sampling (LAG)."""
