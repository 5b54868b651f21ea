"""Every kind of image file shows the same mask, and nothing but DataError comes out of a bad one."""

import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.fit import area_resize, fit_masks, fit_rgb
from data.images import read_drawing, read_mask, read_picture, read_rgb
from data.masks import DataError
from tests.data_fixtures import LETTER

L255 = LETTER * np.uint8(255)


def _indexed(indices: np.ndarray, *colours: tuple[int, int, int]) -> Image.Image:
    image = Image.fromarray(indices).convert("P")
    image.putdata(indices.ravel().tolist())
    image.putpalette([level for colour in colours for level in colour])
    return image


def _rgba(colour: np.ndarray, alpha: np.ndarray) -> Image.Image:
    return Image.fromarray(np.dstack([colour, colour, colour, alpha]))


KINDS: dict[str, Callable[[], Image.Image]] = {
    "1bit.png": lambda: Image.fromarray(LETTER.astype(bool)),
    "1bit.tif": lambda: Image.fromarray(LETTER.astype(bool)),
    "0_1.png": lambda: Image.fromarray(LETTER),
    "0_255.png": lambda: Image.fromarray(L255),
    "0_255.bmp": lambda: Image.fromarray(L255),
    "0_100.png": lambda: Image.fromarray(LETTER * np.uint8(100)),
    "100_200.png": lambda: Image.fromarray(LETTER * np.uint8(100) + np.uint8(100)),
    "lossless.webp": lambda: Image.fromarray(np.dstack([L255] * 3)),
    "16bit_full.png": lambda: Image.fromarray(LETTER.astype(np.uint16) * 65535),
    "16bit_12bit.png": lambda: Image.fromarray(LETTER.astype(np.uint16) * 4095),
    "16bit_01.png": lambda: Image.fromarray(LETTER.astype(np.uint16)),
    "16bit_above_half.png": lambda: Image.fromarray(LETTER.astype(np.uint16) * 20000 + 20000),
    "16bit.tif": lambda: Image.fromarray(LETTER.astype(np.uint16) * 65535),
    "int32.tif": lambda: Image.fromarray(LETTER.astype(np.int32) * 70000),
    "float_01.tif": lambda: Image.fromarray(LETTER.astype(np.float32)),
    "float_probability.tif": lambda: Image.fromarray(LETTER * np.float32(0.4) + np.float32(0.3)),
    "float_255.tif": lambda: Image.fromarray(LETTER * np.float32(255)),
    "rgb.png": lambda: Image.fromarray(np.dstack([L255] * 3)),
    "blue.png": lambda: Image.fromarray(np.dstack([L255 * 0, L255 * 0, L255])),
    "cmyk.tif": lambda: Image.fromarray(np.dstack([255 - L255] * 3 + [255 - L255])[..., :], mode="CMYK"),
    "gray_alpha_opaque.png": lambda: Image.fromarray(np.dstack([L255, L255 * 0 + 255])),
    "gray_on_nothing.png": lambda: Image.fromarray(np.dstack([L255 * 0 + 90, L255])),
    "big_endian.tif": lambda: Image.fromarray((LETTER.astype(np.uint16) * 4095).astype(">u2")),
    "black_on_nothing.png": lambda: _rgba(L255 * 0, L255),
    "white_on_nothing.png": lambda: _rgba(L255 * 0 + 255, L255),
    "almost_one_colour.png": lambda: _rgba((np.arange(36) % 5).reshape(6, 6).astype(np.uint8), L255),
    "opaque_in_the_middle.png": lambda: _rgba(L255, np.pad(np.full((4, 4), 255, np.uint8), 1)),
    "label_map_dark.png": lambda: _indexed(LETTER, (0, 0, 0), (1, 1, 1)),
    "label_map_inverse.png": lambda: _indexed(LETTER, (255, 255, 255), (128, 0, 0)),
    "label_map_classes.png": lambda: _indexed(LETTER * np.uint8(2), (0, 0, 0), (128, 0, 0), (0, 0, 40)),
    "label_map_ramp.png": lambda: _indexed(LETTER * np.uint8(3), *[(i, i, i) for i in range(256)]),
    "reduced_colours.png": lambda: Image.fromarray(L255).quantize(2),
    "reduced_swapped.png": lambda: _indexed(1 - LETTER, (255, 255, 255), (0, 0, 0)),
    "label_map_outlined.png": lambda: _indexed(LETTER * (1 + np.arange(6, dtype=np.uint8) // 3),
                                               (255, 255, 255), (255, 0, 0), (0, 0, 0)),
    "label_map_ignored.png": lambda: _indexed(LETTER * np.uint8(255), (129, 127, 38), (120, 69, 125)),
    "reduced_red.png": lambda: _indexed(1 - LETTER, (255, 0, 0), (0, 0, 0)),
    "reduced_levels.png": lambda: _indexed(1 - LETTER, (235, 235, 235), (16, 16, 16)),
    "reduced_by_pillow.gif": lambda: Image.fromarray(np.dstack([L255 // 255 * 200] * 3)),
    "animated.gif": lambda: Image.fromarray(L255),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_shows_the_same_mask(kind: str, tmp_path: Path) -> None:
    KINDS[kind]().save(tmp_path / kind, None, **({"lossless": True} if kind.endswith("webp") else {}))
    mask = read_mask(tmp_path / kind)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, LETTER)


@pytest.mark.parametrize(
    ("name", "image", "share"),
    [
        ("levels.png", Image.fromarray(np.array([[0, 25, 26, 128], [229, 230, 255, 0]], np.uint8)), 3 / 8),
        ("offset.png", Image.fromarray(np.array([[100, 109, 111, 200]], np.uint8)), 1 / 4),
        ("16bit.png", Image.fromarray(np.array([[0, 2000, 4095, 300]], np.uint16)), 1 / 4),
        ("float.tif", Image.fromarray(np.array([[-1, 0, 1, 1]], np.float32)), 1 / 4),
        ("labels.png", _indexed(LETTER, (0, 0, 0), (128, 0, 0)), 0),
        ("one.png", Image.new("L", (4, 4), 77), 0),
    ],
)
def test_grey_is_what_lies_between_the_outer_tenths_of_the_files_own_range(
    name: str, image: Image.Image, share: float, tmp_path: Path
) -> None:
    image.save(tmp_path / name)
    assert read_picture(tmp_path / name, rgb=False).grey == share


def test_32_bits_without_a_sign_reach_twice_as_far(tmp_path: Path) -> None:
    file = tmp_path / "a.tif"
    Image.fromarray(-LETTER.astype(np.int32)).save(file)
    assert not read_mask(file).any()
    signed, unsigned = (struct.pack("<HHIHH", 339, 3, 1, kind, 0) for kind in (2, 1))  # SampleFormat
    file.write_bytes(file.read_bytes().replace(signed, unsigned))
    np.testing.assert_array_equal(read_mask(file), LETTER)
    np.testing.assert_array_equal(read_rgb(file), np.dstack([L255] * 3))


def test_jpeg_artefacts_do_not_become_foreground(tmp_path: Path) -> None:
    large = np.kron(L255, np.ones((8, 8), np.uint8))
    Image.fromarray(large).save(tmp_path / "a.jpg", quality=60)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.jpg"), large // 255)


@pytest.mark.parametrize(
    ("image", "value"),
    [
        (Image.new("L", (5, 4), 0), 0),
        (Image.new("L", (5, 4), 255), 1),
        (Image.new("L", (5, 4), 1), 1),
        (Image.new("RGBA", (5, 4), (0, 0, 0, 255)), 0),
        (Image.new("RGBA", (5, 4), (255, 255, 255, 255)), 1),
        (Image.new("RGBA", (5, 4), (255, 255, 255, 0)), 0),
        (Image.new("1", (5, 4), 1), 1),
        (Image.new("I;16", (5, 4), 65535), 1),
    ],
)
def test_an_image_of_one_value_is_all_one_or_the_other(image: Image.Image, value: int, tmp_path: Path) -> None:
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), np.full((4, 5), value, np.uint8))


def test_a_palette_of_white_alone_is_full_and_one_of_another_colour_is_empty(tmp_path: Path) -> None:
    white, black, red = (255, 255, 255), (0, 0, 0), (255, 0, 0)
    for colours, share in (((white,), 1), ((white, black), 1), ((black,), 0), ((red,), 0), ((white, red), 0)):
        _indexed(np.zeros((4, 4), np.uint8), *colours).save(tmp_path / "a.png")
        assert read_mask(tmp_path / "a.png").mean() == share


def test_a_pale_drawing_is_told_from_its_paper_and_noise_is_not(tmp_path: Path) -> None:
    for dark, light, told in ((140, 215, True), (20, 90, True), (250, 255, False)):
        Image.fromarray(np.where(LETTER, dark, light).astype(np.uint8)).save(tmp_path / "a.png")
        drawn = read_drawing(tmp_path / "a.png")
        np.testing.assert_array_equal(drawn, 1 - LETTER if told else np.ones_like(LETTER))


def test_palette_with_a_transparent_colour_is_read_by_its_alpha(tmp_path: Path) -> None:
    image = _indexed(1 - LETTER, (0, 0, 0), (9, 9, 9))  # index 1 is the transparent surrounding
    image.save(tmp_path / "a.png", transparency=1)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), LETTER)


@pytest.mark.parametrize(
    ("tag", "turned"),
    [(2, np.fliplr(LETTER)), (3, np.rot90(LETTER, 2)), (4, np.flipud(LETTER)), (6, np.rot90(LETTER[:, 1:], -1)),
     (8, np.rot90(LETTER[:, 1:], 1))],
)  # fmt: skip
def test_exif_orientation_is_applied(tag: int, turned: np.ndarray, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = tag
    stored = LETTER[:, 1:] if tag > 4 else LETTER
    Image.fromarray(stored * np.uint8(255)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), turned)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.tif", "a.png"])
def test_first_frame_is_used_and_the_others_are_warned_of(name: str, tmp_path: Path) -> None:
    frames = [Image.fromarray(np.dstack([page] * 3)) for page in (L255, 255 - L255, np.rot90(L255))]
    lossless = {"lossless": True} if name.endswith("webp") else {}
    frames[0].save(tmp_path / name, None, save_all=True, append_images=frames[1:], **lossless)
    with pytest.warns(UserWarning, match="3 frames or pages; the first is used"):
        mask = read_mask(tmp_path / name)
    np.testing.assert_array_equal(mask, LETTER)


def test_rgb_files_keep_their_values_and_masks_become_black_and_white(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    half = np.dstack([rgb, np.full((5, 7), 128, np.uint8)])
    Image.fromarray(rgb).save(tmp_path / "rgb.png")
    Image.fromarray(half).save(tmp_path / "rgba.png")
    Image.fromarray(LETTER.astype(np.uint16) * 65535).save(tmp_path / "16.png")
    Image.fromarray(LETTER.astype(np.float32)).save(tmp_path / "float.tif")
    np.testing.assert_array_equal(read_rgb(tmp_path / "rgb.png"), rgb)
    np.testing.assert_array_equal(read_rgb(tmp_path / "rgba.png"), np.rint(rgb * (128 / 255)).astype(np.uint8))
    for name in ("16.png", "float.tif"):
        np.testing.assert_array_equal(read_rgb(tmp_path / name), np.dstack([L255] * 3))


def test_large_images_are_read_in_bands_that_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.images._BAND", 13)  # two rows of six at a time
    for kind in ("black_on_nothing.png", "opaque_in_the_middle.png", "rgb.png"):
        KINDS[kind]().save(tmp_path / kind)
        np.testing.assert_array_equal(read_mask(tmp_path / kind), LETTER)
    colours = np.random.default_rng(0).integers(0, 256, (7, 6, 4), np.uint8)
    Image.fromarray(colours).save(tmp_path / "a.png")
    banded = read_mask(tmp_path / "a.png"), read_rgb(tmp_path / "a.png")
    monkeypatch.undo()
    for one, whole in zip(banded, (read_mask(tmp_path / "a.png"), read_rgb(tmp_path / "a.png")), strict=True):
        np.testing.assert_array_equal(one, whole)


def test_every_colour_under_every_alpha_is_put_on_black_to_the_nearest_value(tmp_path: Path) -> None:
    colour, alpha = np.mgrid[:256, :256].astype(np.uint8)
    Image.fromarray(np.dstack([colour, colour[::-1], colour, alpha])).save(tmp_path / "a.png")
    exact = np.dstack([colour, colour[::-1], colour]) * (alpha[..., None] / 255)
    np.testing.assert_array_equal(read_rgb(tmp_path / "a.png"), np.rint(exact).astype(np.uint8))


def _png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8001, 12000, 20000, 60000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_by_its_header(side: int, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(_png_header(side, side))
    with pytest.raises(DataError, match=r"a\.png.*too large.*at most 64 million pixels"):
        read_mask(tmp_path / "a.png")


BAD_FILES = {
    "empty.png": b"",
    "text.png": b"not an image at all",
    "truncated.png": b"",
    "header.png": b"\x89PNG\r\n\x1a\n",
    "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
}


@pytest.mark.parametrize("name", [*BAD_FILES, "missing.png", "folder.png", "nan.tif"])
def test_a_bad_file_raises_data_error_with_its_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "truncated.png":
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (99, 99), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:2000])
    elif name == "folder.png":
        path.mkdir()
    elif name == "nan.tif":
        Image.fromarray(np.full((3, 3), np.nan, np.float32)).save(path)
    elif name in BAD_FILES:
        path.write_bytes(BAD_FILES[name])
    for read in (read_mask, read_rgb):
        with pytest.raises(DataError, match=name):
            read(path)


@settings(max_examples=150, deadline=None)
@given(st.data())
@pytest.mark.filterwarnings("ignore")
def test_flipped_bytes_raise_only_data_error(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    suffix = data.draw(st.sampled_from(["png", "jpg", "bmp", "tif", "webp"]))
    path = tmp_path_factory.getbasetemp() / f"flipped.{suffix}"
    Image.fromarray(np.dstack([L255] * 3)).save(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    with suppress(DataError):
        assert set(np.unique(read_mask(path))) <= {0, 1}


def test_halving_keeps_a_pixel_whose_area_is_half_covered() -> None:
    blocks = np.array([[[0, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 0]]], np.uint8)
    np.testing.assert_array_equal(area_resize(blocks, 2, 2), [[[0, 0], [1, 1]]])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), *[st.integers(1, 12)] * 4)
def test_area_average_equals_counting_on_a_grid_that_both_sizes_divide(
    seed: int, h: int, w: int, height: int, width: int
) -> None:
    masks = np.random.default_rng(seed).integers(0, 2, (3, h, w), dtype=np.uint8)
    fine = np.kron(masks, np.ones((1, height, width), np.uint8))
    counts = fine.reshape(3, height, h, width, w).sum(axis=(2, 4))
    np.testing.assert_array_equal(area_resize(masks, height, width), 2 * counts >= h * w)


def test_enlarging_by_a_whole_factor_repeats_pixels() -> None:
    np.testing.assert_array_equal(fit_masks(LETTER[None], 18)[0], np.kron(LETTER, np.ones((3, 3), np.uint8)))


def test_fitting_keeps_the_aspect_ratio_and_pads_with_background() -> None:
    wide = np.ones((1, 4, 16), np.uint8)
    expected = np.zeros((8, 8), np.uint8)
    expected[3:5] = 1
    np.testing.assert_array_equal(fit_masks(wide, 8)[0], expected)
    rgb = fit_rgb(np.full((4, 16, 3), 200, np.uint8), 8)
    np.testing.assert_array_equal(rgb, np.repeat(expected[..., None] * np.uint8(200), 3, axis=2))


def test_without_enlarging_a_small_mask_is_only_padded() -> None:
    np.testing.assert_array_equal(fit_masks(LETTER[None], 10, enlarge=False)[0], np.pad(LETTER, 2))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(8, 40))
def test_any_shape_fits_and_a_full_mask_stays_full_along_its_longer_side(height: int, width: int, size: int) -> None:
    fitted = fit_masks(np.ones((1, height, width), np.uint8), size)
    assert fitted.shape == (1, size, size)
    assert set(np.unique(fitted)) <= {0, 1}
    longer = fitted[0].any(axis=1) if height >= width else fitted[0].any(axis=0)
    assert longer.all()
    assert fit_rgb(np.ones((height, width, 3), np.uint8), size).shape == (size, size, 3)


def test_a_very_long_image_fits() -> None:
    assert fit_masks(np.ones((1, 3000, 2), np.uint8), 32).sum() == 32
