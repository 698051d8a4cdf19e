"""The classification networks that segmentation networks stand on: image to feature maps."""
