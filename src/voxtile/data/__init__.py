"""Cases to batches: surveys, splits, the leakage gate, the sample stream, normalisation and augmentation."""
