"""Run folders to evidence."""
