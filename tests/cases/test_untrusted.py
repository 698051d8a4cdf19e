import resource
import struct

import numpy as np
import pytest
import rasterio

from tests.testers.geotiff import bands, save, whole
from tests.testers.web import serving
from voxtile.cases.geotiff import GeoTiffSource
from voxtile.cases.raster import open_raster
from voxtile.cases.untrusted import MOST_BLOCK, sources_of
from voxtile.errors import DataError

VRT = """<VRTDataset rasterXSize="6" rasterYSize="5"><VRTRasterBand dataType="Byte" band="1"{band}><SimpleSource>
<SourceFilename relativeToVRT="{relative}">{name}</SourceFilename><SourceBand>1</SourceBand></SimpleSource>{more}</VRTRasterBand>
</VRTDataset>"""


def vrt(path, name, relative=1, band="", more=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(VRT.format(name=name, relative=relative, band=band, more=more))
    return path


@pytest.fixture
def folder(tmp_path):
    """A downloaded data set, and a file that is not part of it."""
    (tmp_path / "set" / "tiles").mkdir(parents=True)
    for place in ("set", "set/tiles", "."):
        save(tmp_path / place / "t.tif", bands((1, 5, 6)))
    return tmp_path / "set"


pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def test_a_vrt_may_name_what_lies_in_its_folder(folder):
    for name, relative in (("t.tif", 1), ("tiles/t.tif", 1), ("tiles/../t.tif", 1), (folder / "t.tif", 0)):
        np.testing.assert_array_equal(whole(GeoTiffSource([vrt(folder / "a.vrt", name, relative)]))[0][:, 0], bands((1, 5, 6)))


def test_what_a_vrt_is_made_of_is_an_input_too(folder):
    source = GeoTiffSource([vrt(folder / "a.vrt", "tiles/t.tif")])
    assert source.files == (folder / "a.vrt", folder / "tiles/t.tif")


def test_what_gdal_itself_writes_is_taken(folder):
    from rasterio.shutil import copy

    with rasterio.open(folder / "t.tif", "r+") as out:
        out.descriptions, out.nodata = ("red",), 3
        out.write_colormap(1, {1: (1, 2, 3, 255)})
        out.update_tags(key="ä & <b>")
    copy(folder / "t.tif", folder / "a.vrt", driver="VRT")
    source = GeoTiffSource([folder / "a.vrt"])
    assert source.channels == ("red",)
    np.testing.assert_array_equal(whole(source)[0][:, 0], bands((1, 5, 6)))


@pytest.mark.parametrize("name", ["../t.tif", "{outside}", "tiles/../../t.tif", "/etc/hostname", "t.tif/../../t.tif"])
@pytest.mark.parametrize("relative", [0, 1])
def test_a_vrt_may_not_name_what_lies_elsewhere(folder, name, relative):
    path = vrt(folder / "a.vrt", name.format(outside=folder.parent / "t.tif"), relative)
    outside = "which lies outside its folder .*VOXTILE_VRT_FOLDERS=/folder"
    with pytest.raises(DataError, match=rf"a\.vrt names '.*', ({outside}|neither by its whole path nor from the VRT's own folder)"):
        open_raster(path)


def test_unless_the_user_says_where_it_may_read(folder, monkeypatch):
    monkeypatch.setenv("VOXTILE_VRT_FOLDERS", f"/nowhere:{folder.parent}")
    for name, relative in (("../t.tif", 1), (folder.parent / "t.tif", 0)):
        assert open_raster(vrt(folder / "a.vrt", name, relative)).shape == (5, 6)
    with pytest.raises(DataError, match="lies outside"):
        open_raster(vrt(folder / "a.vrt", "/etc/hostname"))


def test_a_path_from_the_folder_in_which_a_vrt_was_built_is_said_to_be_unknown(folder, monkeypatch):
    monkeypatch.setenv("VOXTILE_VRT_FOLDERS", str(folder.parent))
    with pytest.raises(DataError, match=r"neither by its whole path nor from the VRT's own folder.*gdalbuildvrt a\.vrt"):
        open_raster(vrt(folder / "a.vrt", "data/t.tif", 0))


@pytest.mark.parametrize(
    "name", ["{url}/t.tif", "/vsicurl/{url}/t.tif", "/vsizip/t.zip/t.tif", "GTIFF_DIR:1:t.tif", "t.tif|x", "&lt;a&gt;"]
)
@pytest.mark.parametrize("trusted", [False, True])
def test_addresses_and_other_ways_in_are_closed_whatever_the_user_says(folder, monkeypatch, name, trusted):
    monkeypatch.setenv("VOXTILE_VRT_FOLDERS", "/" if trusted else "")
    with serving(folder) as web:
        for relative in (0, 1):
            with pytest.raises(DataError, match="which lies outside"):
                open_raster(vrt(folder / "a.vrt", name.format(url=web.url), relative))
        assert not web.all


@pytest.mark.parametrize(
    ("band", "more", "what"),
    [
        (' subClass="VRTRawRasterBand"', "", "subClass='VRTRawRasterBand'"),
        (' subClass="VRTDerivedRasterBand"', "<PixelFunctionType>f</PixelFunctionType>", "subClass='VRTDerivedRasterBand'"),
        ("", "<PixelFunctionCode>import os</PixelFunctionCode>", "PixelFunctionCode"),
        ("", "<SimpleSource><sourcefilename>/etc/hostname</sourcefilename></SimpleSource>", "sourcefilename"),
        ("", '<SimpleSource SourceFilename="/etc/hostname"/>', "SourceFilename='/etc/hostname'"),
        ("", "<SimpleSource><SourceFilename>t.tif<MDI/>x</SourceFilename></SimpleSource>", "MDI"),
        ("", '<x:SourceFilename xmlns:x="y">/etc/hostname</x:SourceFilename>', "SourceFilename"),
    ],
)
def test_a_vrt_that_does_more_than_put_files_together_is_refused(folder, band, more, what):
    with pytest.raises(DataError, match=f"a.vrt holds '.*{what}.*could read any file or run a program"):
        open_raster(vrt(folder / "a.vrt", "t.tif", band=band, more=more))


@pytest.mark.parametrize(
    "text", ["", "no xml", "<VRTDataset>", "<!DOCTYPE a [<!ENTITY b 'c'>]><VRTDataset/>", "<VRTDataset><!-- --></VRTDataset>"]
)
def test_a_vrt_that_can_be_read_in_two_ways_or_none_is_refused(folder, text):
    (folder / "a.vrt").write_text(text)
    with pytest.raises(DataError, match=r"a\.vrt cannot be read as a VRT"):
        open_raster(folder / "a.vrt")


@pytest.mark.parametrize("inner", [VRT.format(name="/etc/hostname", relative=0, band="", more=""), "<GDALWMSTileService/>", "{}"])
def test_text_under_the_name_of_a_picture_is_read_as_neither(folder, inner):
    """GDAL chooses by content: a VRT within a VRT, or a description of a web service, is only called a TIFF."""
    (folder / "x.tif").write_text(inner)
    with pytest.raises(DataError, match=r"x\.tif is no TIFF, JPEG 2000, PNG or JPEG"):
        open_raster(vrt(folder / "a.vrt", "x.tif"))
    with pytest.raises(DataError, match=r"x\.tif cannot be read as a GeoTIFF"):
        open_raster(folder / "x.tif")
    with pytest.raises(DataError, match=r"gone\.tif does not exist"):
        open_raster(vrt(folder / "a.vrt", "gone.tif"))


@pytest.mark.parametrize("ending", [".msk", ".ovr"])
def test_a_side_file_that_is_no_tiff_is_refused(folder, ending):
    (folder / f"t.tif{ending}").write_text(VRT.format(name="/etc/hostname", relative=0, band="", more=""))
    for path in (folder / "t.tif", vrt(folder / "a.vrt", "t.tif")):
        with pytest.raises(DataError, match=f"t.tif{ending} lies beside .*t.tif as its mask or overviews and is no TIFF"):
            open_raster(path)


def test_a_tag_that_puts_overviews_elsewhere_is_refused(folder):
    with serving(folder) as web:
        with rasterio.open(folder / "t.tif", "r+") as out:
            out.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=f"/vsicurl/{web.url}/t.tif")
        with pytest.raises(DataError, match=r"t\.tif says that its overviews lie in '/vsicurl/.*OVERVIEW_FILE"):
            open_raster(folder / "t.tif")
        assert not web.all


# --- headers


def header(path, width, height, tile=(), count=1, planar=1, entries=1, rows=None, packed=1):
    """A TIFF without pixels, of less than 200 bytes, that claims what it is told to."""
    tags = [(256, width), (257, height), (258, 8), (259, packed), (262, 1), (277, count), (284, planar)]
    tags += [(322, tile[0]), (323, tile[1])] if tile else [(278, rows or height)]
    fields = [(number, 1, value) for number, value in tags] + [
        (number, entries, 8) for number in ((324, 325) if tile else (273, 279))
    ]
    body = b"".join(struct.pack("<HHII", number, 4, many, value) for number, many, value in sorted(fields))
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(fields)) + body + bytes(4))
    return path


@pytest.mark.parametrize(
    ("claim", "words"),
    [
        ({"width": 10**6, "height": 10**6, "tile": (512, 512), "entries": 3_818_116}, "1,000,000 x 1,000,000 .* 3,818,116 blocks"),
        ({"width": 10**6, "height": 10**6}, "1,000,000 x 1,000,000 .*no room"),
        ({"width": 10**6, "height": 10**6, "tile": (65536, 65536), "entries": 256}, "65536 x 65536 pixels, 4,295 MB"),
        ({"width": 8192, "height": 8192, "tile": (8192, 8192), "count": 5}, "8192 x 8192 pixels, 336 MB"),
        ({"width": 16, "height": 16, "tile": (16, 16), "count": 6000}, "claims 6000 bands"),
        ({"width": 4096, "height": 16, "tile": (16, 16), "count": 1000, "planar": 2, "entries": 256_000}, "in 256,000 blocks"),
        ({"width": 5000, "height": 5000, "rows": 1, "packed": 8, "entries": 5000}, "in 5,000 blocks"),
        ({"width": 4, "height": 2001, "packed": 8, "count": 300, "planar": 2, "entries": 300}, "in 300 blocks"),
    ],
)
def test_a_header_that_claims_what_cannot_be_is_refused_at_once(tmp_path, claim, words):
    path = header(tmp_path / "a.tif", **claim)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=rf"a\.tif .*{words}"):
        open_raster(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_neither_may_a_vrt_name_such_a_file(folder):
    header(folder / "bomb.tif", 65536, 65536, (65536, 65536))
    with pytest.raises(DataError, match=r"bomb\.tif .*65536 x 65536 pixels, 4,295 MB"):
        open_raster(vrt(folder / "a.vrt", "bomb.tif"))


def test_a_sparse_scene_of_a_gigapixel_is_none_of_these(tmp_path):
    path = tmp_path / "a.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=32768, height=32768, count=1, dtype="uint8", tiled=True, blockxsize=512, blockysize=512,
        SPARSE_OK=True, crs="EPSG:32633", transform=rasterio.Affine(10, 0, 5e5, 0, -10, 5e6),
    ):  # fmt: skip
        pass
    assert path.stat().st_size < 100_000
    assert open_raster(path).shape == (32768, 32768)


@pytest.mark.parametrize("shape", [(1, 3000, 1), (1, 1, 1), (3, 1, 2000)])
def test_neither_are_thin_scenes(tmp_path, shape):
    stored = bands(shape)
    np.testing.assert_array_equal(whole(GeoTiffSource([save(tmp_path / "a.tif", stored)]))[0][:, 0], stored)


def test_the_largest_block_that_is_read_holds_a_scene_in_one_strip(tmp_path):
    assert MOST_BLOCK >= 10980 * 10980 * 2  # Sentinel-2's bands
    stored = bands((1, 400, 300))
    path = save(tmp_path / "a.tif", stored, compress="deflate", blockysize=400)
    np.testing.assert_array_equal(whole(GeoTiffSource([path]))[0][:, 0], stored)


@pytest.mark.parametrize("shape", [(1, 3000, 400), (1, 3000, 1), (3, 2500, 40)])
@pytest.mark.parametrize("compress", ["deflate", "lzw", "zstd", "lerc"])
def test_so_does_one_that_is_compressed_to_less_than_places_of_its_rows_would_take(tmp_path, shape, compress):
    stored = np.zeros(shape, np.uint8)
    stored[:, 100:120, :30] = 1
    path = save(tmp_path / "a.tif", stored, compress=compress, blockysize=shape[1])
    assert path.stat().st_size < 4 * shape[0] * shape[1]
    np.testing.assert_array_equal(whole(GeoTiffSource([path]))[0][:, 0], stored)


@pytest.mark.parametrize(("rows", "refused"), [(3000, True), (1, False)])
def test_a_strip_that_is_decoded_whole_counts_with_all_its_rows(tmp_path, monkeypatch, rows, refused):
    path = save(tmp_path / "a.tif", bands((1, 3000, 40)), compress="lerc", blockysize=rows)
    monkeypatch.setattr("voxtile.cases.untrusted.MOST_BLOCK", 100_000)
    if refused:
        with pytest.raises(DataError, match=r"a\.tif is stored in blocks of 3000 x 40 pixels"):
            open_raster(path)
    else:
        assert open_raster(path).shape == (3000, 40)


def test_a_large_vrt_of_many_sources_is_looked_through_quickly(folder):
    more = "".join(
        '<SimpleSource><SourceFilename relativeToVRT="1">tiles/../t.tif</SourceFilename></SimpleSource>' for _ in range(500)
    )
    assert sources_of(vrt(folder / "a.vrt", "t.tif", more=more)) == [folder / "t.tif"]
