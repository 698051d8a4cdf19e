"""Files read and written by window: GeoTIFF scenes, NIfTI volumes and pictures behind one `Case`."""
