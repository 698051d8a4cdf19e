"""Networks: image [B, C, H, W] or [B, C, D, H, W] to logits of the same size."""
