import json
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from tests.testers.formats import FormatTester
from tests.testers.geotiff import save as save_scene
from voxtile.cases import pictures
from voxtile.cases.cache import cache_folder
from voxtile.cases.case import Case, Labels
from voxtile.cases.colors import default_colors
from voxtile.cases.geotiff import GeoTiffSource
from voxtile.cases.maps import MapSpec
from voxtile.cases.names import natural_key
from voxtile.cases.pictures import PictureSource
from voxtile.cases.shared import Shared
from voxtile.cases.window import Window
from voxtile.errors import DataError

SPEC = MapSpec(("ground", "water", "roof"), colors=((9, 8, 7), (0, 0, 255), (255, 0, 0)), tags=(("place", "Köln"),))


def noise(shape, dtype="uint8", seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def save(path, array, **options):
    """Writes an array [H, W] or [H, W, C]."""
    Image.fromarray(array).save(path, **options)
    return path


def palette_image(indices, colors):
    image = Image.fromarray(indices)
    image.putpalette([value for color in colors for value in color])
    return image


def whole(source):
    return source.read(Window.whole(source.canonical.shape), range(len(source.channels)))


def whole_scene(source):
    return source.read(Window.whole(source.working.shape), range(len(source.channels)))[0][:, 0]


def written(source, path, spec, values):
    with source.open_map(path, spec) as writer:
        writer.write(Window.whole(source.canonical.shape), values)
        return writer.close()


class PictureTester(FormatTester):
    def reopen(self, path):
        return PictureSource(
            sorted(path.iterdir(), key=lambda file: natural_key(file.name)) if path.is_dir() else [path], label=True
        )


class TestColourPng(PictureTester):
    def make(self, folder, array):
        return PictureSource([save(folder / "a.png", np.moveaxis(array[:, 0], 0, -1))])


class TestDeepGreyTiff(PictureTester):
    shape, dtype = (1, 1, 20, 31), "uint16"

    def make(self, folder, array):
        return PictureSource([save(folder / "a.tif", array[0, 0])])


class TestSlices(PictureTester):
    shape = (3, 12, 9, 8)

    def make(self, folder, array):
        paths = [save(folder / f"p_{z + 1}.png", np.moveaxis(array[:, z], 0, -1)) for z in range(12)]
        return PictureSource(paths)


class TestPages(PictureTester):
    shape, dtype = (1, 5, 11, 9), "float32"

    def make(self, folder, array):
        first, *rest = [Image.fromarray(page) for page in array[0]]
        first.save(folder / "a.tif", save_all=True, append_images=rest)
        return PictureSource([folder / "a.tif"])


class TestPictureTooBigForMemory(PictureTester):
    shape = (3, 1, 30, 20)

    @pytest.fixture(autouse=True)
    def _little_memory(self, monkeypatch):
        monkeypatch.setattr(pictures, "_BIG", 1000)

    def make(self, folder, array):
        return PictureSource([save(folder / "a.png", np.moveaxis(array[:, 0], 0, -1))])

    def test_it_is_decoded_once_to_the_disk(self, source, monkeypatch):
        source.read(Window(0, 0, 0, 1, 2, 2), (0,))
        (file,) = cache_folder().glob("*.npy")
        assert np.load(file).shape == (1, 3, 30, 20)
        monkeypatch.setattr(pictures, "_pixels", None)
        source.read(Window(0, 5, 5, 1, 2, 2), (0,))


def test_slices_that_are_files_of_their_own_are_decoded_alone(tmp_path):
    paths = [save(tmp_path / f"{number}.png", noise((20, 30), seed=number)) for number in range(2)]
    assert not PictureSource(paths).is_one_piece
    assert PictureSource(paths[:1]).is_one_piece


def test_jpeg_reads_as_pillow_decodes_it(tmp_path):
    path = save(tmp_path / "a.jpg", noise((20, 30, 3)), quality=90)
    source = PictureSource([path])
    with Image.open(path) as image:
        np.testing.assert_array_equal(whole(source)[0][:, 0], np.moveaxis(np.asarray(image), -1, 0))
    assert source.channels == ("red", "green", "blue")
    assert (source.canonical.unit, source.canonical.spacing) == ("px", (1, 1, 1))


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [("png", "uint8"), ("png", "uint16"), ("tif", "uint8"), ("tif", "uint16"), ("tif", "int32"), ("tif", "float32")],
)
def test_grey_keeps_its_depth(tmp_path, suffix, dtype):
    stored = noise((7, 6), "uint8").astype(dtype) * np.asarray(200).astype(dtype)
    source = PictureSource([save(tmp_path / f"a.{suffix}", stored)])
    pixels, valid = whole(source)
    assert source.channels == ("grey",)
    assert source.dtype == pixels.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(pixels[0, 0], stored)
    assert valid.all()


def test_big_endian_tiff_reads_in_native_order(tmp_path):
    stored = noise((7, 6), "uint16")
    Image.frombytes("I;16B", (6, 7), stored.astype(">u2").tobytes()).save(tmp_path / "a.tif")
    source = PictureSource([tmp_path / "a.tif"])
    pixels, _ = whole(source)
    assert pixels.dtype == np.uint16
    np.testing.assert_array_equal(pixels[0, 0], stored)


def test_black_and_white_is_zero_and_one(tmp_path):
    stored = noise((7, 11)) > 127
    for label in (False, True):
        pixels, _ = whole(PictureSource([save(tmp_path / "a.png", stored)], label=label))
        np.testing.assert_array_equal(pixels[0, 0], stored)


def test_more_channels_are_bands(tmp_path):
    Image.fromarray(noise((5, 6, 4)), mode="CMYK").save(tmp_path / "a.tif")
    source = PictureSource([tmp_path / "a.tif"])
    assert source.channels == ("band1", "band2", "band3", "band4")
    np.testing.assert_array_equal(np.moveaxis(whole(source)[0][:, 0], 0, -1), noise((5, 6, 4)))


class TestTransparency:
    @pytest.mark.parametrize("channels", [2, 4])
    def test_alpha_is_no_channel_and_says_where_data_is(self, tmp_path, channels):
        stored = noise((7, 6, channels))
        stored[..., -1] = np.where(stored[..., -1] > 100, stored[..., -1], 0)
        source = PictureSource([save(tmp_path / "a.png", stored)])
        pixels, valid = whole(source)
        assert len(source.channels) == channels - 1
        np.testing.assert_array_equal(np.moveaxis(pixels[:, 0], 0, -1), stored[..., :-1])
        np.testing.assert_array_equal(valid[0], stored[..., -1] > 0)

    def test_a_transparent_colour_is_no_data(self, tmp_path):
        stored = noise((7, 6, 3))
        stored[2, 3] = stored[4, 5] = (1, 2, 3)
        _, valid = whole(PictureSource([save(tmp_path / "a.png", stored, transparency=(1, 2, 3))]))
        assert np.argwhere(~valid[0]).tolist() == [[2, 3], [4, 5]]

    @pytest.mark.parametrize("dtype", ["uint8", "uint16"])
    def test_a_transparent_grey_is_no_data(self, tmp_path, dtype):
        stored = noise((7, 6), dtype) // 2 + 9
        stored[2, 3] = 7
        _, valid = whole(PictureSource([save(tmp_path / "a.png", stored, transparency=7)]))
        assert np.argwhere(~valid[0]).tolist() == [[2, 3]]

    def test_float_pixels_that_are_not_finite_are_no_data(self, tmp_path):
        stored = np.zeros((5, 6), np.float32)
        stored[1, 2], stored[3, 4] = np.nan, np.inf
        _, valid = whole(PictureSource([save(tmp_path / "a.tif", stored)]))
        assert np.argwhere(~valid[0]).tolist() == [[1, 2], [3, 4]]

    @pytest.mark.parametrize("suffix", ["png", "tif"])
    def test_an_alpha_that_looks_like_a_channel_is_doubted(self, tmp_path, suffix):
        stored = noise((20, 30, 4))
        source = PictureSource([save(tmp_path / f"a.{suffix}", stored)])
        (doubt,) = source.doubts()
        assert f"values from {stored[..., 3].min()} to {stored[..., 3].max()}" in doubt
        channels = re.search(r"data\.channels=(\S+)'", doubt)[1]
        told = GeoTiffSource(source.paths, asked=json.loads(channels))
        np.testing.assert_array_equal(np.moveaxis(whole_scene(told), 0, -1), stored)

    @pytest.mark.parametrize("alpha", [[0, 255], [128], [0, 0, 0, 0, 9, 255, 255, 255, 255, 255, 255, 255, 255]])
    def test_an_alpha_that_is_one_is_not(self, tmp_path, alpha):
        stored = noise((20, 30, 4))
        stored[..., 3] = np.resize(alpha, (20, 30))
        assert not PictureSource([save(tmp_path / "a.png", stored)]).doubts()

    def test_of_a_palette_nothing_is_doubted_nor_of_slices(self, tmp_path):
        clear = palette_image(noise((20, 30)) % 200, noise((200, 3)).tolist())
        clear.save(tmp_path / "a.png", transparency=bytes(range(200)))
        assert not PictureSource([tmp_path / "a.png"]).doubts()
        assert not PictureSource([save(tmp_path / f"b{z}.png", noise((20, 30, 4))) for z in range(2)]).doubts()

    @pytest.mark.parametrize(
        ("count", "colored", "told"),
        [
            (4, False, r"what the other is\. .*data\.format=geotiff.* runs that were trained on such pictures saw no more"),
            (5, False, r"what the others are\. .*data\.format=geotiff"),
            (4, True, r"what the other is\. As a label whose colours are named, write the file anew with the 3 alone"),
        ],
    )
    def test_bands_that_pillow_leaves_out_are_refused(self, tmp_path, count, colored, told):
        save_scene(tmp_path / "a.tif", noise((count, 7, 6)), photometric="RGB", ALPHA="UNSPECIFIED")
        with pytest.raises(DataError, match=rf"a\.tif has {count} bands, of which Pillow reads 3.*{told}"):
            PictureSource([tmp_path / "a.tif"], colored=colored)


class TestPalettes:
    COLORS = ((10, 20, 30), (40, 50, 60), (70, 80, 90))

    @pytest.mark.parametrize("suffix", ["png", "tif"])
    def test_an_image_becomes_its_colours_and_a_label_its_indices(self, tmp_path, suffix):
        indices = noise((7, 6)) % 3
        path = tmp_path / f"a.{suffix}"
        palette_image(indices, self.COLORS).save(path)
        image, label = PictureSource([path]), PictureSource([path], label=True)
        assert (image.channels, label.channels) == (("red", "green", "blue"), ("label",))
        np.testing.assert_array_equal(np.moveaxis(whole(image)[0][:, 0], 0, -1), np.array(self.COLORS)[indices])
        np.testing.assert_array_equal(whole(label)[0][0, 0], indices)

    def test_a_transparent_index_is_no_data_in_an_image_and_a_value_in_a_label(self, tmp_path):
        indices = noise((7, 6)) % 3
        palette_image(indices, self.COLORS).save(tmp_path / "a.png", transparency=0)
        image, label = PictureSource([tmp_path / "a.png"]), PictureSource([tmp_path / "a.png"], label=True)
        assert len(image.channels) == 3
        np.testing.assert_array_equal(whole(image)[1][0], indices > 0)
        np.testing.assert_array_equal(whole(label)[0][0, 0], indices)
        assert whole(label)[1].all()


class TestLabels:
    def test_grey_saved_as_colour_is_one_channel(self, tmp_path):
        values = noise((7, 6)) % 3
        for channels in (3, 4):
            stored = np.stack([values] * channels, axis=-1)
            label = PictureSource([save(tmp_path / f"{channels}.png", stored)], label=True)
            found, valid = whole(label)
            np.testing.assert_array_equal(found[0, 0], values)
            np.testing.assert_array_equal(valid[0], values > 0 if channels == 4 else np.ones_like(valid[0]))

    def test_colours_are_refused_with_the_first_of_them(self, tmp_path):
        stored = np.full((7, 6, 3), 5, dtype=np.uint8)
        stored[2, 3] = (5, 6, 5)
        label = PictureSource([save(tmp_path / "l.png", stored)], label=True)
        with pytest.raises(DataError, match=r"l\.png is a colour picture: its pixel \(y 2, x 3\) is \(5, 6, 5\)"):
            whole(label)

    def test_masks_of_0_and_255_read_as_classes(self, tmp_path):
        stored = np.where(noise((7, 6)) > 127, 255, 0).astype(np.uint8)
        image = PictureSource([save(tmp_path / "a.png", noise((7, 6, 3)))])
        label = PictureSource([save(tmp_path / "l.tif", stored, compression="tiff_adobe_deflate")], label=True)
        found = Case("a", "a", image, Labels(label, {0: 0, 255: 1})).read_label(Window(0, 0, 0, 1, 7, 6))
        np.testing.assert_array_equal(found[0], stored == 255)


class TestVolumes:
    @pytest.fixture
    def opened(self, monkeypatch):
        """Names of the files that Pillow opened so far."""
        names, pillows = [], Image.open
        monkeypatch.setattr(Image, "open", lambda path, **options: names.append(path.name) or pillows(path, **options))
        return names

    def test_only_the_slices_in_the_window_are_decoded_and_each_once(self, tmp_path, opened):
        source = PictureSource([save(tmp_path / f"s{z}.png", noise((7, 6), seed=z)) for z in range(9)])
        opened.clear()
        for _ in range(2):
            source.read(Window(3, 1, 1, 2, 3, 3), (0,))
        assert opened == ["s3.png", "s4.png"]

    def test_decoded_slices_are_kept_up_to_a_bound(self, tmp_path, opened, monkeypatch):
        monkeypatch.setattr(pictures, "_SLICES", Shared(2 * 42, lambda planes: planes.nbytes))
        source = PictureSource([save(tmp_path / f"s{z}.png", noise((7, 6), seed=z)) for z in range(3)])
        opened.clear()
        for z in (0, 1, 0, 2, 0, 1):  # 2 takes the place of 1, and 1 that of 2
            source.read(Window(z, 0, 0, 1, 7, 6), (0,))
        assert opened == ["s0.png", "s1.png", "s2.png", "s1.png"]

    def test_a_slice_larger_than_the_bound_is_kept_alone(self, tmp_path, opened, monkeypatch):
        monkeypatch.setattr(pictures, "_SLICES", Shared(1, lambda planes: planes.nbytes))
        source = PictureSource([save(tmp_path / f"s{z}.png", noise((7, 6), seed=z)) for z in range(2)])
        opened.clear()
        for z in (0, 0, 1, 1, 0):
            source.read(Window(z, 0, 0, 1, 7, 6), (0,))
        assert opened == ["s0.png", "s1.png", "s0.png"]

    @pytest.mark.parametrize("odd", [noise((7, 5)), noise((7, 6, 3)), noise((7, 6), "uint16")])
    def test_the_slice_that_differs_is_named(self, tmp_path, odd):
        paths = [save(tmp_path / f"s{z}.png", noise((7, 6))) for z in range(3)]
        save(paths[1], odd)
        with pytest.raises(DataError, match=r"s1\.png has .* the first slice .*s0\.png 6x7 pixels of mode 'L'"):
            PictureSource(paths)

    def test_the_page_that_differs_is_named(self, tmp_path):
        pages = [Image.fromarray(noise((7, 6))), Image.fromarray(noise((7, 6))), Image.fromarray(noise((5, 6)))]
        pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
        with pytest.raises(DataError, match=r"a\.tif \(page 3\) has 6x5 pixels"):
            PictureSource([tmp_path / "a.tif"])

    def test_files_with_pages_are_no_slices(self, tmp_path):
        page = Image.fromarray(noise((7, 6)))
        page.save(tmp_path / "a.tif", save_all=True, append_images=[page])
        page.save(tmp_path / "b.tif")
        with pytest.raises(DataError, match=r"a\.tif has several pages"):
            PictureSource([tmp_path / "a.tif", tmp_path / "b.tif"])

    def test_a_slice_that_was_replaced_is_decoded_anew(self, tmp_path):
        for seed in (0, 1):
            stored = noise((7, 6), seed=seed)
            np.testing.assert_array_equal(whole(PictureSource([save(tmp_path / "a.png", stored)]))[0][0, 0], stored)


class TestUnreadable:
    @pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # how Pillow speaks of a TIFF's header before it gives up
    @pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
    @pytest.mark.parametrize("left", [0, 20, 3000, -2000])
    def test_a_cut_off_file_is_named(self, tmp_path, name, left):
        options = {"compression": "tiff_lzw"} if name == "a.tif" else {}
        path = save(tmp_path / name, noise((60, 60, 3)), **options)
        path.write_bytes(path.read_bytes()[:left])
        with pytest.raises(DataError, match=f"{name} cannot be read as a picture"):
            whole(PictureSource([path]))

    def test_an_absent_file_and_other_formats_are_named(self, tmp_path):
        (tmp_path / "a.png").write_text("no picture")
        save(tmp_path / "b.png", noise((5, 6)), format="GIF")
        for name in ("a.png", "b.png", "absent.png"):
            with pytest.raises(DataError, match=f"{name} cannot be read as a picture"):
                PictureSource([tmp_path / name])

    def test_a_decompression_bomb_is_refused_and_a_large_picture_read(self, tmp_path, monkeypatch):
        stored = noise((30, 30))
        path = save(tmp_path / "a.png", stored)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)  # of which Pillow refuses twice as many
        np.testing.assert_array_equal(whole(PictureSource([path]))[0][0, 0], stored)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        with pytest.raises(DataError, match=r"a\.png is too big for a picture.*GeoTIFF"):
            PictureSource([path])

    def test_colours_that_pillow_would_cut_to_8_bits_are_refused(self, tmp_path):
        def chunk(kind, data):
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)  # 2x1 pixels, 16 bits, red green blue
        pixels = zlib.compress(b"\0" + np.arange(6, dtype=">u2").tobytes())
        parts = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
        (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
        with pytest.raises(DataError, match=r"a\.png has more than 8 bits per channel.*geotiff"):
            PictureSource([tmp_path / "a.png"])


class TestOrientation:
    def turned(self, path, orientation, pages=1):
        """A picture that asks to be turned, of pages [pages, 20, 30, 3], which are returned."""
        exif = Image.Exif()
        exif[274] = orientation
        stored = [noise((20, 30, 3), seed=page) for page in range(pages)]
        first, *rest = [Image.fromarray(page) for page in stored]
        first.save(path, exif=exif, **({"save_all": True, "append_images": rest} if rest else {}))
        return np.stack(stored)

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize(("name", "pages"), [("a.png", 1), ("a.tif", 1), ("a.tif", 2)])
    def test_pixels_are_read_as_stored(self, tmp_path, name, pages, orientation):
        stored = self.turned(tmp_path / name, orientation, pages)
        assert PictureSource([tmp_path / name], label=True).canonical.shape == (pages, 20, 30)
        pixels, _ = whole(PictureSource([tmp_path / name]))
        np.testing.assert_array_equal(np.moveaxis(pixels, 0, -1), stored)

    @pytest.mark.parametrize("orientation", [3, 5, 6, 7, 8])
    @pytest.mark.parametrize("stored", [noise((20, 30)), noise((20, 30), "uint16"), noise((20, 30, 4))], ids=["L", "I;16", "RGBA"])
    def test_so_are_those_of_modes_that_pillow_maps_into_memory(self, tmp_path, stored, orientation):
        exif = Image.Exif()
        exif[274] = orientation
        path = save(tmp_path / "a.tif", stored, exif=exif)
        for label in (False, True) if stored.ndim == 2 else (False,):
            pixels, _ = whole(PictureSource([path], label=label))
            np.testing.assert_array_equal(pixels[0, 0], stored if stored.ndim == 2 else stored[..., 0])

    def test_each_page_is_asked(self, tmp_path):
        turned = Image.Exif()
        turned[274] = 3
        stored = [noise((20, 30), seed=page) for page in range(2)]
        with TiffImagePlugin.AppendingTiffWriter(tmp_path / "a.tif", new=True) as file:
            for page, exif in zip(stored, (Image.Exif(), turned), strict=True):
                Image.fromarray(page).save(file, format="TIFF", exif=exif)
                file.newFrame()
        source = PictureSource([tmp_path / "a.tif"])
        assert source.key == "as stored"  # page 2 was once read turned
        assert len(source.notes()) == 1
        np.testing.assert_array_equal(whole(source)[0][0], stored)
        assert [file.name.split(".")[1] for file in cache_folder().glob("*.npy")] == ["image-stored"]

    @pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
    def test_it_is_told(self, tmp_path, name):
        self.turned(tmp_path / name, 3)
        source = PictureSource([tmp_path / name])
        assert source.canonical.shape == (1, 20, 30)
        assert source.notes() == source.doubts()
        assert "asks viewers to turn it" in source.notes()[0]
        for nothing in (0, 1, 9):
            self.turned(tmp_path / name, nothing)
            assert not PictureSource([tmp_path / name]).notes()

    def test_only_what_was_once_read_turned_is_known_by_another_key(self, tmp_path):
        for name, orientation, key in (
            ("a.tif", 6, "as stored"),
            ("b.tif", 1, ""),
            ("e.tif", 0, ""),
            ("c.jpg", 6, ""),
            ("d.png", 6, ""),
        ):
            self.turned(tmp_path / name, orientation)
            assert PictureSource([tmp_path / name]).key == key

    def test_broken_exif_says_nothing(self, tmp_path):
        save(tmp_path / "a.png", noise((20, 30, 3)), exif=b"no exif at all")
        assert not PictureSource([tmp_path / "a.png"]).notes()


class TestMaps:
    LABELS = np.array([[[0, 1, 2, 255], [2, 2, 1, 0]]], dtype=np.uint8)

    def test_a_picture_ends_as_a_png_with_a_palette_and_its_classes(self, tmp_path):
        source = PictureSource([save(tmp_path / "a.jpg", noise((2, 4, 3)))])
        assert source.map_name("m", SPEC) == "m.png"
        with Image.open(written(source, tmp_path / "m.png", SPEC, self.LABELS)) as image:
            assert (image.mode, image.format) == ("P", "PNG")
            np.testing.assert_array_equal(np.asarray(image), self.LABELS[0])
            assert image.text == {"classes": "0=ground, 1=water, 2=roof", "place": "Köln"}
            colors = np.asarray(image.convert("RGBA"))
        np.testing.assert_array_equal(colors[0, :3, :3], SPEC.colors)
        np.testing.assert_array_equal(colors[..., 3] > 0, self.LABELS[0] < 255)

    def test_colours_are_chosen_where_none_are_given(self, tmp_path):
        source = PictureSource([save(tmp_path / "a.png", noise((2, 4)))])
        with Image.open(written(source, tmp_path / "m.png", MapSpec(("a", "b", "c")), self.LABELS)) as image:
            np.testing.assert_array_equal(np.asarray(image.convert("RGB"))[0, :3], default_colors(3))

    def test_slice_files_end_as_a_folder_of_their_names(self, tmp_path):
        source = PictureSource([save(tmp_path / f"s_{z}.tif", noise((2, 4))) for z in (9, 10, 11)])
        assert source.map_name("patient.7", SPEC) == "patient.7"
        folder = written(source, tmp_path / "maps" / "patient.7", SPEC, np.concatenate([self.LABELS] * 3))
        assert sorted(path.name for path in folder.iterdir()) == ["s_10.png", "s_11.png", "s_9.png"]

    def test_slices_of_one_name_in_several_folders_stay_apart(self, tmp_path):
        for name in "ab":
            (tmp_path / name).mkdir()
        source = PictureSource([save(tmp_path / name / "s.png", noise((2, 4))) for name in "ab"])
        folder = written(source, tmp_path / "m", SPEC, np.concatenate([self.LABELS] * 2))
        assert sorted(path.name for path in folder.iterdir()) == ["0000_s.png", "0001_s.png"]

    def test_a_folder_with_other_files_is_never_replaced(self, tmp_path):
        source = PictureSource([save(tmp_path / f"s{z}.png", noise((2, 4))) for z in range(2)])
        (tmp_path / "m").mkdir()
        (tmp_path / "m" / "thesis.tex").touch()
        with pytest.raises(DataError, match=r"holds other files \(thesis\.tex\)"):
            source.open_map(tmp_path / "m", SPEC)

    def test_a_multi_page_tiff_ends_as_one(self, tmp_path):
        pages = [Image.fromarray(noise((2, 4), seed=z)) for z in range(3)]
        pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
        source = PictureSource([tmp_path / "a.tif"])
        assert source.map_name("m", SPEC) == "m.tif"
        with Image.open(written(source, tmp_path / "m.tif", SPEC, np.concatenate([self.LABELS] * 3))) as image:
            assert (image.n_frames, image.mode) == (3, "P")
            assert json.loads(image.tag_v2[270]) == {"classes": "0=ground, 1=water, 2=roof", "place": "Köln"}

    @pytest.mark.parametrize("kind", ["picture", "pages", "slices"])
    def test_heatmaps_are_float_tiffs_with_a_page_per_class(self, tmp_path, kind):
        depth = 1 if kind == "picture" else 3
        pages = [Image.fromarray(noise((2, 4), seed=z)) for z in range(depth)]
        if kind == "pages":
            pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
            paths = [tmp_path / "a.tif"]
        else:
            paths = [tmp_path / f"s{z}.png" for z in range(depth)]
            for page, path in zip(pages, paths, strict=True):
                page.save(path)
        source = PictureSource(paths)
        spec = MapSpec(("ground", "water"), heatmap=True)
        heat = np.random.default_rng(0).random((2, depth, 2, 4), dtype=np.float32)
        path = written(source, tmp_path / source.map_name("m", spec), spec, heat)
        files = sorted(path.iterdir()) if kind == "slices" else [path]
        expected = list(heat.transpose(1, 0, 2, 3)) if kind == "slices" else [heat.reshape(-1, 2, 4)]
        assert [file.suffix for file in files] == [".tif"] * len(expected)
        for file, pages_of_file in zip(files, expected, strict=True):
            found = PictureSource([file])
            assert found.dtype == np.float32
            np.testing.assert_array_equal(whole(found)[0][0], pages_of_file)
