"""voxtile: semantic segmentation of medical volumes and satellite scenes."""

__version__ = "0.1.0"
