"""Files read and written by window, behind one `Case`.

They are scenes (GeoTIFF, VRT, JPEG 2000), volumes (NIfTI, MetaImage, NRRD, DICOM), pictures, and what TorchGeo reads.
"""
