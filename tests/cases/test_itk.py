import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  # as its own documentation calls it

from tests.testers.formats import FormatTester
from voxtile.cases.case import Case, Labels
from voxtile.cases.itk import ItkSource, about
from voxtile.cases.maps import MapSpec
from voxtile.cases.nifti import NiftiSource
from voxtile.cases.volume_files import open_volume
from voxtile.cases.volumes import on_image
from voxtile.cases.window import Window
from voxtile.errors import DataError

SPEC = MapSpec(("ground", "front", "back"), tags=(("run", "7"),))
KINDS = (".mha", ".mhd", ".nrrd", ".nhdr")
TURNED = (0.8, -0.6, 0, 0, 0, -1, 0.6, 0.8, 0)  # oblique, axes permuted, left-handed in RAS as in LPS


def image(array, spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0), direction=None, **metadata):
    """An image of `array` [z, y, x] or [z, y, x, c]."""
    made = sitk.GetImageFromArray(array, isVector=array.ndim == 4)
    made.SetSpacing(spacing)
    made.SetOrigin(origin)
    if direction is not None:
        made.SetDirection(direction)
    for key, value in metadata.items():
        made.SetMetaData(key, value)
    return made


def save(path, array, compress=False, **fields):
    sitk.WriteImage(image(array, **fields), str(path), useCompression=compress)
    return path


def numbered(shape, dtype="int16"):
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def whole(source):
    return source.read(Window.whole(source.canonical.shape), range(len(source.channels)))


def canonical(array):
    """An array [z, y, x] in ITK's default orientation, left posterior superior, as it is read."""
    return array[:, ::-1, ::-1]


class ItkTester(FormatTester):
    shape, dtype, kind, compress = (1, 6, 9, 7), "int16", ".mha", False

    def make(self, folder, array):
        stored = np.ascontiguousarray(array[..., ::-1, ::-1].transpose(1, 2, 3, 0))
        path = folder / f"a{self.kind}"
        fields = {"spacing": (0.5, 1.25, 3.0), "origin": (-20.5, 5.0, 33.0), "compress": self.compress}
        return ItkSource([save(path, stored if len(array) > 1 else stored[..., 0], **fields)])

    def reopen(self, path):
        return ItkSource([path])


class TestMha(ItkTester):
    pass


class TestMhdCompressed(ItkTester):
    kind, dtype, compress = ".mhd", "float32", True


class TestNrrdOfVectors(ItkTester):
    kind, shape, dtype, compress = ".nrrd", (3, 6, 9, 7), "uint8", True


class TestNhdr(ItkTester):
    kind, dtype = ".nhdr", "uint16"


class TestStackedFiles(ItkTester):
    shape = (2, 6, 9, 7)

    def make(self, folder, array):
        names = ("p7_t1.mha", "p7_flair.nrrd")
        return ItkSource([save(folder / name, canonical(channel)) for name, channel in zip(names, array, strict=True)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("direction", [None, TURNED, (0, 0, -1, -1, 0, 0, 0, 1, 0)])
def test_a_volume_lies_where_its_nifti_does_and_its_map_where_it_does(tmp_path, kind, direction):
    array = numbered((3, 4, 5))
    made = image(array, (0.1, 1 / 3, 2.7), (1 / 7, -3.3, 11), direction)
    for name in (f"a{kind}", "a.nii.gz"):
        sitk.WriteImage(made, str(tmp_path / name))
    source, reference = ItkSource([tmp_path / f"a{kind}"]), NiftiSource([tmp_path / "a.nii.gz"])  # written by ITK, read by nibabel
    np.testing.assert_allclose(source.stored.matrix, reference.stored.matrix, atol=1e-5)
    assert source.canonical.corner_distance(reference.canonical) < 1e-4
    np.testing.assert_array_equal(whole(source)[0], whole(reference)[0])

    with source.open_map(tmp_path / source.map_name("m", SPEC), SPEC) as writer:
        writer.write(Window.whole(source.canonical.shape), (whole(source)[0][0] % 3).astype(np.uint8))
        path = writer.close()
    written = sitk.ReadImage(str(path))
    assert path.suffix == {".mhd": ".mha", ".nhdr": ".nrrd"}.get(kind, kind)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), array % 3)
    for fact in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(written, fact)(), getattr(made, fact)(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [".mha", ".nrrd"])
def test_a_map_says_what_it_is_and_nothing_of_the_patient(tmp_path, kind):
    path = save(tmp_path / f"a{kind}", numbered((3, 4, 5)), PatientName="Doe")
    assert b"Doe" in path.read_bytes()
    spec = MapSpec(("ground", 'in "quotes" = a: b, é'), tags=(("made_from", "7 = 8"),))
    source = ItkSource([path])
    with source.open_map(tmp_path / source.map_name("m", spec), spec) as writer:
        made = writer.close()
    assert b"Doe" not in made.read_bytes()
    assert about(made) == {"classes": list(spec.classes), "tags": {"made_from": "7 = 8"}}


def test_class_names_that_no_reader_could_read_are_left_out(tmp_path):
    source = ItkSource([save(tmp_path / "a.mha", numbered((3, 4, 5)))])
    spec = MapSpec(tuple(f"{number} {'x' * 200}" for number in range(200)), tags=(("run", "7"),))
    with source.open_map(tmp_path / "m.mha", spec) as writer:
        assert about(writer.close()) == {"classes": [], "tags": {"run": "7"}}


@pytest.mark.parametrize("kind", [".mha", ".nrrd"])
def test_a_heatmap_is_an_image_of_vectors(tmp_path, kind):
    source = ItkSource([save(tmp_path / f"a{kind}", numbered((3, 4, 5)))])
    spec = MapSpec(("ground", "front"), heatmap=True)
    heat = np.random.default_rng(0).random((2, 3, 4, 5), dtype=np.float32)
    with source.open_map(tmp_path / f"m{kind}", spec) as writer:
        writer.write(Window(0, 0, 0, 2, 4, 5), heat[:, :2])
        written = sitk.ReadImage(str(writer.close()))
    assert (written.GetNumberOfComponentsPerPixel(), written.GetPixelIDTypeAsString()) == (2, "vector of 32-bit float")
    stored = sitk.GetArrayFromImage(written)
    np.testing.assert_array_equal(stored[:2, ::-1, ::-1].transpose(3, 0, 1, 2), heat[:, :2])
    assert np.isnan(stored[2]).all()


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "float32", "float64"])
@pytest.mark.parametrize("kind", [".mha", ".nrrd"])
def test_the_data_type_is_the_files_own(tmp_path, kind, dtype):
    array = numbered((3, 4, 5), dtype)
    pixels, valid = whole(ItkSource([save(tmp_path / f"a{kind}", array)]))
    assert pixels.dtype == np.dtype(dtype)
    assert valid.all()
    np.testing.assert_array_equal(pixels[0], canonical(array))


def test_image_and_label_may_be_files_of_different_kinds(tmp_path):
    made = image(numbered((3, 4, 5), "uint8"), (1, 2, 3), (7, 8, 9), TURNED)
    for name in ("a.nrrd", "l.nii.gz", "l.mha"):
        sitk.WriteImage(made, str(tmp_path / name))
    opened = open_volume([tmp_path / "a.nrrd"])
    for name in ("l.nii.gz", "l.mha"):
        label = on_image(open_volume([tmp_path / name]), opened)
        np.testing.assert_array_equal(whole(label)[0], whole(opened)[0])
        assert Case("a", "a", opened, Labels(label, dict.fromkeys(range(60), 0))).read_label(Window(0, 0, 0, 1, 1, 1)) == 0
    moved = image(numbered((3, 4, 5), "uint8"), (1, 2, 3), (7.2, 8, 9), TURNED)
    sitk.WriteImage(moved, str(tmp_path / "l.mha"))
    with pytest.raises(DataError, match=r"l\.mha lies 0\.2 voxels away from its image .*a\.nrrd"):
        on_image(open_volume([tmp_path / "l.mha"]), opened)


def test_channels_in_files_of_several_kinds_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"several kinds: .*a\.mha, .*b\.nii\.gz"):
        open_volume([tmp_path / "a.mha", tmp_path / "b.nii.gz"])


@pytest.mark.parametrize(("kind", "data"), [(".mhd", ".raw"), (".nhdr", ".raw")])
def test_equal_headers_over_other_voxels_are_other_volumes(tmp_path, kind, data):
    for name, value in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        save(tmp_path / name / f"a{kind}", np.full((3, 4, 5), value, np.uint8))
    one, two = (ItkSource([tmp_path / name / f"a{kind}"]) for name in ("one", "two"))
    assert one.path.read_bytes() == two.path.read_bytes()
    assert (whole(one)[0] == 1).all()
    assert (whole(two)[0] == 2).all()
    assert one.files == (tmp_path / "one" / f"a{kind}", tmp_path / "one" / f"a{data}")


@pytest.mark.parametrize("kind", [".mhd", ".nhdr"])
@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../b.raw", "in/../../b.raw", "LIST", "%03d.raw 1 3 1", "LIST 2", "-", "~/b.raw", "s*.raw", "C:\\b.raw"]
)
def test_a_header_that_leads_elsewhere_is_refused(tmp_path, kind, name):
    path = save(tmp_path / f"a{kind}", numbered((3, 4, 5), "uint8"))
    text = path.read_text()
    assert text.count("a.raw") == 1
    path.write_text(text.replace("a.raw", name))
    with pytest.raises(DataError, match=r"as the file of its voxels\. Expected the name of one file in the folder"):
        ItkSource([path])


@pytest.mark.parametrize("kind", [".mha", ".nrrd"])
def test_so_is_one_file_whose_header_names_another(tmp_path, kind):
    path = save(tmp_path / f"a{kind}", numbered((3, 4, 5), "uint8"))
    if kind == ".mha":
        path.write_bytes(path.read_bytes().replace(b"ElementDataFile = LOCAL", b"ElementDataFile = ../b.raw"))
    else:
        path.write_bytes(path.read_bytes().replace(b"encoding: raw\n", b"encoding: raw\nDATA FILE: ../b.raw\n"))
    with pytest.raises(DataError, match=r"names '\.\./b\.raw' as the file of its voxels"):
        ItkSource([path])


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        (".mhd", "ElementDataFile = ", "ElementDataFile = a.raw\nElementDataFile = "),
        (".mhd", "ElementDataFile = ", "1 ElementDataFile = a.raw\nElementDataFile = "),
        (".nhdr", "data file: ", "data file: a.raw\ndata file: "),
    ],
)
def test_a_second_name_for_the_voxels_is_refused(tmp_path, kind, old, new):
    path = save(tmp_path / f"a{kind}", numbered((3, 4, 5), "uint8"))
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match="more than once"):
        ItkSource([path])


def test_a_line_without_a_separator_which_would_swallow_the_next_is_refused(tmp_path):
    path = save(tmp_path / "a.mhd", numbered((3, 4, 5), "uint8"))
    path.write_text(path.read_text().replace("ElementDataFile", "note\nElementDataFile"))
    with pytest.raises(DataError, match="no line 'name = value'"):
        ItkSource([path])


@pytest.mark.parametrize("kind", [".mhd", ".nhdr"])
def test_voxels_that_are_not_there_are_named(tmp_path, kind):
    path = save(tmp_path / f"a{kind}", numbered((3, 4, 5), "uint8"))
    (tmp_path / "a.raw").unlink()
    with pytest.raises(DataError, match=r"names 'a\.raw' .* does not exist"):
        ItkSource([path])


@pytest.mark.parametrize("kind", KINDS)
def test_voxels_may_lie_in_a_folder_below(tmp_path, kind):
    path = save(tmp_path / f"a{kind}", numbered((3, 4, 5), "uint8"))
    if kind in (".mhd", ".nhdr"):
        (tmp_path / "in").mkdir()
        (tmp_path / "a.raw").rename(tmp_path / "in" / "a.raw")
        path.write_text(path.read_text().replace("a.raw", "in/a.raw"))
    np.testing.assert_array_equal(whole(ItkSource([path]))[0][0], canonical(numbered((3, 4, 5), "uint8")))


@pytest.mark.parametrize("kind", [".mha", ".nrrd"])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("left", [0, 100, 700, -20])
def test_a_cut_off_file_is_named_and_nothing_else_is_said(tmp_path, capfd, kind, compress, left):
    path = save(tmp_path / f"a{kind}", np.random.default_rng(0).integers(0, 999, (9, 9, 9), dtype=np.int16), compress)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(DataError, match=rf"a\{kind} c(annot be read|ould not be decoded)") as error:
        whole(ItkSource([path]))
    assert "0x" not in str(error.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", KINDS)
def test_voxels_without_their_checksum_are_refused(tmp_path, kind):
    path = save(tmp_path / f"a{kind}", np.random.default_rng(0).integers(0, 999, (9, 9, 9), dtype=np.int16), True)
    (data,) = ItkSource([path]).files[1:] or [path]
    whole_file = data.read_bytes()
    for change in (whole_file[:-6], whole_file[:-6] + bytes([whole_file[-6] ^ 1]) + whole_file[-5:]):
        data.write_bytes(change)
        with pytest.raises(DataError, match="could not be decoded"):
            whole(ItkSource([path]))


def test_files_that_hold_no_volume_of_numbers_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"absent\.mha cannot be read"):
        ItkSource([tmp_path / "absent.mha"])
    for kind in (".mha", ".nrrd"):
        for size in ((4, 5), (2, 3, 4, 5)):
            sitk.WriteImage(sitk.Image(size, sitk.sitkUInt8), str(tmp_path / f"a{kind}"))
            with pytest.raises(DataError, match=rf"a\{kind} has the size \({', '.join(map(str, size))}\)"):
                ItkSource([tmp_path / f"a{kind}"])
    path = save(tmp_path / "a.mha", numbered((3, 4, 5)))
    path.write_bytes(path.read_bytes().replace(b"DimSize = 5 4 3", b"DimSize = 0 4 3"))
    with pytest.raises(DataError, match=r"a\.mha has the size \(0, 4, 3\)"):
        ItkSource([path])
    path.write_text("<html>404</html>\n")
    with pytest.raises(DataError, match=r"a\.mha cannot be read as a MetaImage"):
        ItkSource([path])
    path.rename(tmp_path / "a.nrrd")
    with pytest.raises(DataError, match=r"a\.nrrd cannot be read as NRRD"):
        ItkSource([tmp_path / "a.nrrd"])


def test_a_label_with_several_values_per_voxel_is_refused(tmp_path):
    opened = ItkSource([save(tmp_path / "a.mha", numbered((3, 4, 5)))])
    with pytest.raises(DataError, match=r"l\.mha has 2 channels"):
        on_image(ItkSource([save(tmp_path / "l.mha", numbered((3, 4, 5, 2), "uint8"))]), opened)


def test_where_the_header_does_not_say_what_is_left_that_is_noted(tmp_path):
    assert ItkSource([save(tmp_path / "a.nrrd", numbered((3, 4, 5)))]).notes() == []
    (tmp_path / "b.nrrd").write_bytes(b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 5 4 3\nencoding: raw\n\n" + bytes(60))
    assert any("taken on trust" in note for note in ItkSource([tmp_path / "b.nrrd"]).notes())
    (tmp_path / "b.mha").write_bytes(b"NDims = 3\nDimSize = 5 4 3\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n" + bytes(60))
    assert any("taken on trust" in note for note in ItkSource([tmp_path / "b.mha"]).notes())


def test_the_same_voxels_are_the_same_in_any_kind_of_file(tmp_path):
    from voxtile.data.survey import survey

    made = image(numbered((3, 4, 5)), (1, 2, 3))
    digests = set()
    for name in ("a.nii.gz", "b.nii", "a.mha", "a.mhd", "a.nrrd"):
        sitk.WriteImage(made, str(tmp_path / name))
        digests.add(survey(Case(name, name, open_volume([tmp_path / name])), 2, label=False).image_digest)
    assert len(digests) == 1


def test_tags_of_a_map_are_read_back_by_its_ending(tmp_path):
    from voxtile.cases.formats import tags_of

    nib.save(nib.Nifti1Image(numbered((5, 4, 3)), np.eye(4)), tmp_path / "a.nii.gz")
    for name in ("a.mha", "a.nrrd", "a.nii.gz"):
        if name != "a.nii.gz":
            save(tmp_path / name, numbered((3, 4, 5)))
        source = open_volume([tmp_path / name])
        with source.open_map(tmp_path / "out" / source.map_name("m", SPEC), SPEC) as writer:
            made = writer.close()
        assert tags_of(made, "volume") == {"run": "7"}
        assert tags_of(tmp_path / name, "volume") == {}
    assert json.dumps(dict(SPEC.tags)) == '{"run": "7"}'
