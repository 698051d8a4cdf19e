"""Losses, schedules, the LightningModule, recipe and run folder."""
