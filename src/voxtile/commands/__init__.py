"""One small file per command; the only place that knows Hydra."""
