"""Everything below to a trained run: losses, scores, the Lightning module, run identity."""
