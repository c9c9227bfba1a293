"""Truncated singular triplets (tails) of base weights: choose the weight, compute the tails, store them on disk."""
