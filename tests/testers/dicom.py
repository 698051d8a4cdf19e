"""Writes small DICOM files as scanners do, for tests."""

from pathlib import Path

import highdicom
import numpy as np
from pydicom import Dataset, FileDataset
from pydicom.dataset import FileMetaDataset
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, generate_uid

CLASSES = {"CT": "1.2.840.10008.5.1.4.1.1.2", "MR": "1.2.840.10008.5.1.4.1.1.4", "PT": "1.2.840.10008.5.1.4.1.1.128"}
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def uid(*names):
    """A UID that follows from names."""
    return generate_uid(entropy_srcs=[str(name) for name in names])


def turned(degrees=0.0, tilt=0.0):
    """Directions of rows and columns: axial ones turned about z and then about x, in degrees."""
    a, b = np.deg2rad([degrees, tilt])
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    turn = about_x @ about_z
    return (*turn[:, 0], *turn[:, 1])


def header(modality="CT", series="series", study="study", patient="patient", number=0, **elements):
    """A header without pixels and geometry."""
    dataset = Dataset()
    dataset.SOPClassUID = CLASSES.get(modality, modality)
    dataset.SOPInstanceUID = uid(study, series, number)
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID = uid(study, series), uid(study)
    dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = uid(study, "frame"), None
    dataset.Modality = modality if modality in CLASSES else "OT"
    dataset.PatientID, dataset.PatientName, dataset.PatientBirthDate, dataset.PatientSex = patient, f"{patient}^", "", ""
    dataset.StudyID, dataset.StudyDate, dataset.StudyTime, dataset.AccessionNumber = "1", "20200101", "120000", ""
    dataset.ReferringPhysicianName, dataset.SeriesNumber, dataset.InstanceNumber = "", 1, number + 1
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    for key, value in elements.items():
        setattr(dataset, key, value)
    return dataset


def set_pixels(dataset, array, stored=None):
    """Puts a plane [row, column], or several, into a header."""
    dataset.Rows, dataset.Columns = array.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, dataset.get("PhotometricInterpretation", "MONOCHROME2")
    dataset.BitsAllocated = 8 * array.dtype.itemsize
    dataset.BitsStored = stored or dataset.BitsAllocated
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, int(array.dtype.kind == "i")
    dataset.PixelData = array.astype(array.dtype.newbyteorder("<")).tobytes()
    if len(dataset.PixelData) % 2:
        dataset.PixelData += b"\0"
    dataset["PixelData"].VR = "OW" if dataset.BitsAllocated > 8 else "OB"


def save(dataset, path, syntax=ExplicitVRLittleEndian):
    """Writes a dataset as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    meta.TransferSyntaxUID = syntax
    little = syntax != ExplicitVRBigEndian
    whole = FileDataset(str(path), dataset, b"\0" * 128, meta, is_implicit_VR=False, is_little_endian=little)
    whole.save_as(path, enforce_file_format=True)
    return path


def series(
    folder: Path,
    array: np.ndarray,
    modality="CT",
    orientation=AXIAL,
    spacing=(1.5, 1.25),
    step=None,
    apart=3.0,
    origin=(-20.0, 5.0, 33.0),
    stored=None,
    name="IM",
    each=None,
    **elements,
) -> list[Path]:
    """Writes `array` [slice, row, column] as a file per slice, in an order of names and numbers that is not that of the slices.

    Args:
        folder: where.
        array: stored values.
        modality: CT, MR or PT.
        orientation: of rows and columns.
        spacing: between rows, and between columns.
        step: from slice to slice in mm; `apart` along the normal where None.
        apart: see `step`.
        origin: of the first slice.
        stored: bits.
        name: what file names begin with.
        each: called with (header, index of the slice), may change the header.
        **elements: of all headers, or of `header`.
    """
    normal = np.cross(orientation[:3], orientation[3:])
    step = normal * apart if step is None else np.array(step)
    shuffled = np.random.default_rng(3).permutation(len(array))
    paths = []
    for index, plane in enumerate(array):
        given = {"SliceThickness": 9.0, **elements}  # thickness says nothing of the distance between slices
        dataset = header(modality, number=int(shuffled[index]), **given)
        dataset.ImageOrientationPatient = [f"{value:.10g}"[:16] for value in orientation]
        dataset.ImagePositionPatient = [f"{value:.10g}"[:16] for value in np.array(origin) + index * step]
        dataset.PixelSpacing = list(spacing)
        set_pixels(dataset, plane, stored)
        if each:
            each(dataset, index)
        paths.append(save(dataset, folder / f"{name}{shuffled[index]:04d}"))
    return paths


def enhanced(path: Path, array: np.ndarray, order, slopes=None, orientation=AXIAL, spacing=(1.5, 1.25), apart=3.0, **elements):
    """Writes `array` [slice, row, column] as one enhanced CT whose frames lie in the order `order` of slices."""
    dataset = header("1.2.840.10008.5.1.4.1.1.2.1", Modality="CT", **elements)
    dataset.NumberOfFrames = len(array)
    set_pixels(dataset, array[list(order)])
    normal = np.cross(orientation[:3], orientation[3:])
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = list(spacing), 9.0
    plane.ImageOrientationPatient = [float(f"{value:.8g}") for value in orientation]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    dataset.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for index in order:
        frame, position, value = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [float(f"{each:.8g}") for each in np.array((-20.0, 5.0, 33.0)) + index * apart * normal]
        value.RescaleSlope, value.RescaleIntercept, value.RescaleType = (slopes or {}).get(index, 1), 0, "HU"
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [position], [value]
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = frames
    return save(dataset, path)


def segmentation(path: Path, sources, array: np.ndarray, count: int, kind="BINARY", **changes):
    """Writes segment numbers [slice, row, column], or fractions [slice, row, column, segment], as a segmentation of `sources`."""
    family = Code("123109", "DCM", "Manual Processing")
    descriptions = [
        highdicom.seg.SegmentDescription(
            number, f"s{number}", Code("85756007", "SCT", "Tissue"), Code("85756007", "SCT", "Tissue"), "SEMIAUTOMATIC",
            highdicom.AlgorithmIdentificationSequence("hand", family, "1"),
        )
        for number in range(1, count + 1)
    ]  # fmt: skip
    found = highdicom.seg.Segmentation(
        sources, array, kind, descriptions, generate_uid(), 7, generate_uid(), 1, "maker", "model", "1", "1", **changes
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    found.save_as(path)
    return path


def overlapping(path: Path, sources, stacked: np.ndarray):
    """Writes segments [slice, row, column, segment] that may overlap."""
    return segmentation(path, sources, stacked.astype(np.uint8), stacked.shape[-1])
