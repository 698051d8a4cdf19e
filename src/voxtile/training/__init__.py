"""Losses, scores, schedules, the LightningModule, recipe and run folder."""
