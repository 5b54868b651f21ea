"""A user's folder: which images are taken, with which prompts, and what is refused."""

import csv
import io
import json
import os
import unicodedata
import warnings
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from configs.data_cfg import DataCfg, FolderSource
from data.folder import load, load_folder, pieces, read_folder
from data.masks import DataError, MaskSet
from tests.data_fixtures import LETTER, random_masks, write_mask, write_masks

CFG = DataCfg(image_size=8)


def _load(folder: Path, cfg: DataCfg = CFG) -> MaskSet:
    return load_folder(str(folder), "--data.source.train", FolderSource(str(folder)), cfg)


def _prompts(folder: Path) -> dict[str, str]:
    masks = _load(folder)
    return dict(zip(masks.names, masks.prompts, strict=True))


def _write_lines(path: Path, *rows: object) -> None:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")


def test_images_are_found_at_any_depth_in_the_order_of_their_paths(tmp_path: Path) -> None:
    masks = random_masks(3).images
    for name, mask in zip(("b/c/deep.TIFF", "a.PNG", "b/x.bmp"), masks, strict=True):
        write_mask(tmp_path / name, mask)
    found = _load(tmp_path)
    assert found.names == ["a.PNG", "b/c/deep.TIFF", "b/x.bmp"]
    np.testing.assert_array_equal(found.images, masks[[1, 0, 2]])


def test_hidden_and_system_files_are_skipped_silently(tmp_path: Path) -> None:
    write_mask(tmp_path / "a.png")
    for name in (".DS_Store", "._a.png", ".hidden.png", "Thumbs.db", "notes.md", ".git/b.png", "__MACOSX/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"junk")
    assert _load(tmp_path).names == ["a.png"]


def test_what_only_looks_like_an_image_is_listed_and_a_folder_is_searched(tmp_path: Path) -> None:
    write_masks(tmp_path, 3)
    write_mask(tmp_path / "folder.png/inside.png", random_masks(4).images[3])
    (tmp_path / "zero.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "cut.png").write_bytes((tmp_path / "00.png").read_bytes()[:40])
    os.mkfifo(tmp_path / "pipe.png")
    os.symlink("self.png", tmp_path / "self.png")
    found = read_folder(str(tmp_path), "PATH", "Binary Mask", CFG)
    assert found.names == ["00.png", "01.png", "02.png", "folder.png/inside.png"]
    assert [str(error).partition(" ")[0] for error in found.bad_images] == [
        str(tmp_path / name) for name in ("cut.png", "pipe.png", "self.png", "text.png", "zero.png")
    ]
    with pytest.raises(DataError, match=r"5 of 9 images cannot be used: .*cut\.png .* more than 10 %"):
        _load(tmp_path)


@pytest.mark.parametrize("shape", [(1, 1), (3000, 2), (2, 3000), (7, 5), (8, 8), (31, 33)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_full_mask_of_any_size_fills_its_longer_side(tmp_path: Path, shape: tuple[int, int], channels: int) -> None:
    write_mask(tmp_path / "a.png", np.ones(shape, np.uint8))
    image = _load(tmp_path, DataCfg(image_size=8, channels=channels)).images[0]
    h, w = (max(1, round(8 * side / max(shape))) for side in shape)
    expected = np.zeros((8, 8), np.uint8)
    expected[(8 - h) // 2 : (8 - h) // 2 + h, (8 - w) // 2 : (8 - w) // 2 + w] = 1
    np.testing.assert_array_equal(image, expected if channels == 1 else expected[..., None].repeat(3, 2) * 255)


def test_the_first_frame_of_an_animation_is_taken_with_a_warning(tmp_path: Path) -> None:
    frames = [Image.fromarray(mask * np.uint8(255)) for mask in random_masks(2).images]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match=r"a\.gif has 2 frames or pages; the first is used"):
        found = _load(tmp_path)
    np.testing.assert_array_equal(found.images, random_masks(2).images[:1])


def _close(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody enter folders of this name: for the superuser none is closed."""
    scan = os.scandir

    def refused(where: str) -> Any:
        if str(where).endswith(name):
            raise PermissionError(13, "Permission denied", where)
        return scan(where)

    monkeypatch.setattr(os, "scandir", refused)


def test_a_folder_that_cannot_be_read_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_masks(tmp_path, 2)
    write_mask(tmp_path / "closed/a.png")
    _close("closed", monkeypatch)
    with pytest.warns(UserWarning, match=r"1 folders cannot be read: .*closed"):
        assert _load(tmp_path).names == ["00.png", "01.png"]


def test_where_no_image_can_be_reached_the_reason_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mask(tmp_path / "in/closed/a.png")
    os.symlink(tmp_path, tmp_path / "in/link")
    _close("closed", monkeypatch)
    said = r"holds no image \(1 folders cannot be read: .*closed; 1 links to folders are not followed: .*link\); put"
    with pytest.raises(DataError, match=said):
        _load(tmp_path / "in")
    with pytest.raises(DataError, match=said):
        next(pieces(FolderSource(str(tmp_path / "in")), CFG)["train"])


def test_links_to_folders_are_not_followed_but_told_of(tmp_path: Path) -> None:
    write_mask(tmp_path / "in/a.png")
    os.symlink(tmp_path / "in", tmp_path / "in/loop")
    os.symlink("b.png", tmp_path / "in/b.png")
    with pytest.raises(DataError, match=r"1 of 2 images cannot be used: .*b\.png is not a file"):
        _load(tmp_path / "in")
    os.unlink(tmp_path / "in/b.png")
    with pytest.warns(UserWarning, match=r"1 links to folders are not followed: .*loop"):
        assert _load(tmp_path / "in").names == ["a.png"]


def test_a_link_to_a_folder_whose_images_metadata_names_is_followed_that_far(tmp_path: Path) -> None:
    write_mask(tmp_path / "elsewhere/a.png")
    (tmp_path / "in").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "in/pics")
    _write_lines(tmp_path / "in/metadata.jsonl", {"file_name": "pics/a.png", "text": "a cat"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _load(tmp_path / "in").prompts == ["a cat"]


def test_captions_are_taken_from_metadata_then_text_file_then_subfolder_then_default(tmp_path: Path) -> None:
    for name in ("cat/1.png", "cat/2.png", "cat/3.png", "red_fox/deep/4.png", "images/5.png"):
        write_mask(tmp_path / name)
    _write_lines(tmp_path / "cat/metadata.jsonl", {"file_name": "1.png", "text": "from metadata"},
                 {"file_name": "2.png"}, {"file_name": "3.png", "text": None, "other": 7})  # fmt: skip
    (tmp_path / "cat/1.txt").write_text("not used")
    (tmp_path / "cat/2.txt").write_text(" from a \n text  file\n")
    assert _prompts(tmp_path) == {
        "cat/1.png": "from metadata",
        "cat/2.png": "from a text file",
        "cat/3.png": "cat",
        "images/5.png": "Binary Mask",
        "red_fox/deep/4.png": "red fox",
    }


def test_the_suffix_of_a_text_file_may_be_in_capitals(tmp_path: Path) -> None:
    write_mask(tmp_path / "A.PNG")
    (tmp_path / "A.TXT").write_text("a thing")
    assert _prompts(tmp_path) == {"A.PNG": "a thing"}


@pytest.mark.parametrize(("disk", "told"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_with_accents_are_found_however_these_are_stored(
    tmp_path: Path, disk: Literal["NFC", "NFD"], told: Literal["NFC", "NFD"]
) -> None:
    for name in ("a/ü.png", "b/ö/é.png"):
        write_mask(tmp_path / unicodedata.normalize(disk, name))
    (tmp_path / unicodedata.normalize(told, "a/ü.txt")).write_text("from a text file")
    row = {"file_name": unicodedata.normalize(told, "ö\\é.png"), "text": "from metadata"}
    _write_lines(tmp_path / "b/metadata.jsonl", row)
    assert _load(tmp_path).prompts == ["from a text file", "from metadata"]


def test_subfolders_name_no_class_when_the_folder_itself_holds_images(tmp_path: Path) -> None:
    write_mask(tmp_path / "a.png")
    write_mask(tmp_path / "cat/b.png")
    assert _prompts(tmp_path) == {"a.png": "Binary Mask", "cat/b.png": "Binary Mask"}


def test_a_blank_caption_stays_blank_and_missing_ones_are_warned_of_once(tmp_path: Path) -> None:
    write_masks(tmp_path, 3)
    (tmp_path / "00.txt").write_text("\n")
    with pytest.warns(UserWarning, match=r"2 of 3 masks .* get .* 'Binary Mask' \(\.venv/bin/python -m") as caught:
        assert _prompts(tmp_path) == {"00.png": "", "01.png": "Binary Mask", "02.png": "Binary Mask"}
    assert len(caught) == 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_captions_may_begin_with_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    for name in ("a/1.png", "b/2.png", "c/3.png"):
        write_mask(tmp_path / name)
    (tmp_path / "a/1.txt").write_text("Grün", encoding)
    (tmp_path / "b/metadata.csv").write_text('file_name,text,more\r\n2.png,"one, ""two""\nthree",x\r\n', encoding)
    (tmp_path / "c/metadata.jsonl").write_text('{"file_name": "3.png", "text": "Ω\u2028"}', encoding)
    assert _prompts(tmp_path) == {"a/1.png": "Grün", "b/2.png": 'one, "two"\nthree', "c/3.png": "Ω\u2028"}


@pytest.mark.parametrize("name", ["00.txt", "metadata.jsonl", "metadata.csv"])
def test_captions_that_are_not_utf8_are_refused_with_the_file(tmp_path: Path, name: str) -> None:
    write_masks(tmp_path, 1)
    (tmp_path / name).write_bytes(b"file_name,text\n00.png,gr\xfcn\n")
    with pytest.raises(DataError, match=rf"{name} is not UTF-8 text"):
        _load(tmp_path)


def test_a_caption_may_be_a_megabyte_long(tmp_path: Path) -> None:
    long = "word " * 200_000 + "end"
    for name in ("a/1.png", "b/2.png", "c/3.png"):
        write_mask(tmp_path / name)
    (tmp_path / "a/1.txt").write_text(long)
    (tmp_path / "b/metadata.csv").write_text(f'file_name,text\n2.png,"{long}"\n')
    _write_lines(tmp_path / "c/metadata.jsonl", {"file_name": "3.png", "text": long})
    assert set(_prompts(tmp_path).values()) == {long}


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=60))  # CSV before 3.11
def test_any_text_is_a_caption_and_comes_back(text: str) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        for kind in "abc":
            write_mask(folder / kind / "1.png")
        (folder / "a/1.txt").write_text(text, "utf-8", newline="")
        _write_lines(folder / "b/metadata.jsonl", {"file_name": "1.png", "text": text})
        with (folder / "c/metadata.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["file_name", "text"], ["1.png", text]])
        folded = " ".join(text.removeprefix("\ufeff").split())
        assert _prompts(folder) == {"a/1.png": folded, "b/1.png": text, "c/1.png": text}


buffer = io.BytesIO()
Image.fromarray(LETTER * np.uint8(255)).save(buffer, "PNG")
PNG = buffer.getvalue()
NAMES = st.text(st.characters(exclude_characters="/\x00", exclude_categories=["Cs"]), min_size=1, max_size=8)
ROWS = st.fixed_dictionaries({}, optional={
    "file_name": NAMES | st.sampled_from(["a.png", "../a.png", "/", "", "\x00", "a" * 5000, "\ud800"]) | st.integers(),
    "text": st.text(max_size=9) | st.none() | st.integers(),
})  # fmt: skip
CONTENTS = (
    st.just(PNG) | st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8"))
    | st.lists(ROWS, max_size=3).map(lambda rows: "\n".join(map(json.dumps, rows)).encode())
    | st.lists(st.lists(NAMES, max_size=3), max_size=3).map(
        lambda rows: "\n".join(map(",".join, [["file_name", "text"], *rows])).encode("utf-8"))
)  # fmt: skip
PLACES = st.sampled_from(["a.png", "a.txt", "metadata.jsonl", "metadata.csv", "manifest.jsonl", "in/metadata.jsonl",
                          "in/b.tif", "in/b.txt"]) | NAMES.map(lambda name: f"{name}.png")  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(PLACES, CONTENTS, max_size=5), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([1, 3]))
@pytest.mark.filterwarnings("ignore")
def test_any_folder_is_read_or_refused_with_a_data_error(
    files: dict[str, bytes], max_bad: float, channels: Literal[1, 3]
) -> None:
    with TemporaryDirectory() as name:
        for place, content in files.items():
            path = Path(name, place)
            path.parent.mkdir(exist_ok=True)
            with suppress(OSError):  # a name that this file system does not take
                path.write_bytes(content)
        source = FolderSource(name, max_bad=max_bad)
        with suppress(DataError):
            found, _ = load(source, DataCfg(source, image_size=8, channels=channels))
            assert len(found) > 0
            assert all(isinstance(prompt, str) and prompt.encode("utf-8") is not None for prompt in found.prompts)


GOOD = '{"file_name": "00.png", "text": "x"}'
BAD_JSON = {
    "no JSON": "{oops",
    "no object": "[1]",
    "no file_name": '{"text": "x"}',
    "number as text": '{"file_name": "01.png", "text": 5}',
    "missing file": '{"file_name": "none.png", "text": "x"}',
    "listed twice": GOOD,
    "outside": '{"file_name": "../outside.png", "text": "x"}',
    "outside, Windows": '{"file_name": "..\\\\outside.png", "text": "x"}',
    "absolute": '{"file_name": "/outside.png", "text": "x"}',
    "nested": "[" * 100_000,
    "half a character": '{"file_name": "01.png", "text": "\\ud83d"}',
    "half a character in a name": '{"file_name": "\\ud83d.png"}',
    "NUL": '{"file_name": "a\\u0000.png"}',
    "endless name": json.dumps({"file_name": "a" * 5000 + ".png"}),
}


@pytest.mark.parametrize("kind", BAD_JSON)
def test_a_bad_metadata_line_is_named_by_its_number(tmp_path: Path, kind: str) -> None:
    write_masks(tmp_path / "in", 2)
    write_mask(tmp_path / "outside.png")
    _write_lines(tmp_path / "in/metadata.jsonl", GOOD, "", BAD_JSON[kind])
    with pytest.raises(DataError, match=r"metadata\.jsonl, line 3: "):
        _load(tmp_path / "in")


@pytest.mark.parametrize(
    ("content", "line"),
    [("name,text\n00.png,x\n", 1), ("", 1), ("file_name,text\n00.png,a,b\n", 2), ("file_name,text\n00.png\n", 2),
     ("file_name,text\n00.png,x\nnone.png,x\n", 3), ('file_name,text\n00.png,"x"y\n', 2),
     ("file_name,text\n../outside.png,x\n", 2), ("file_name,caption\n00.png,x\n", 1)],
)  # fmt: skip
def test_a_bad_csv_line_is_named_by_its_number(tmp_path: Path, content: str, line: int) -> None:
    write_masks(tmp_path / "in", 2)
    write_mask(tmp_path / "outside.png")
    (tmp_path / "in/metadata.csv").write_text(content)
    with pytest.raises(DataError, match=rf"metadata\.csv, line {line}: "):
        _load(tmp_path / "in")


@pytest.mark.parametrize("header", ["file_name, text", " File_Name,Text ", '"file_name", "text"'])
def test_blanks_and_capitals_in_the_header_of_a_csv_lose_no_caption(tmp_path: Path, header: str) -> None:
    write_masks(tmp_path, 1)
    comma = ", " if ", " in header else ","
    (tmp_path / "metadata.csv").write_text(f'{header}\n00.png{comma}"long, thin"\n')
    assert _load(tmp_path).prompts == ["long, thin"]


def test_all_bad_lines_and_texts_are_found_at_once(tmp_path: Path) -> None:
    write_masks(tmp_path, 2)
    _write_lines(tmp_path / "metadata.jsonl", "{oops", {"file_name": "00.png"}, {"file_name": "00.png"}, "[]")
    (tmp_path / "00.txt").write_bytes(b"\xff")
    found = read_folder(str(tmp_path), "PATH", "Binary Mask", CFG)
    assert [str(error).removeprefix(f"{tmp_path}/")[:23] for error in found.bad_captions] == [
        "metadata.jsonl, line 1:", "metadata.jsonl, line 3:", "metadata.jsonl, line 4:", "00.txt is not UTF-8 tex",
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"line 1: .*\(3 more like this: \.venv/bin/python -m scripts.check_data lists"):
        _load(tmp_path)


def test_a_pipe_in_the_place_of_captions_is_not_waited_for(tmp_path: Path) -> None:
    write_masks(tmp_path, 1)
    os.mkfifo(tmp_path / "metadata.jsonl")
    with pytest.raises(DataError, match=r"metadata\.jsonl is not a file"):
        _load(tmp_path)


def test_dots_that_stay_inside_the_folder_are_allowed(tmp_path: Path) -> None:
    write_mask(tmp_path / "a/1.png")
    (tmp_path / "b").mkdir()
    _write_lines(tmp_path / "b/metadata.jsonl", {"file_name": "../a/1.png", "text": "x"})
    assert _prompts(tmp_path) == {"a/1.png": "x"}


def test_a_generated_folder_reads_back_as_a_training_set_without_its_grid(tmp_path: Path) -> None:
    masks = write_masks(tmp_path, 5)
    write_mask(tmp_path / "grid.png", np.ones((30, 30), np.uint8))
    rows = [{"file_name": f"{i:02d}.png", "text": f"a thing {i}", "seed": i, "steps": 1} for i in range(5)]
    _write_lines(tmp_path / "manifest.jsonl", *rows)
    with pytest.warns(UserWarning, match="1 images under .* are listed in no metadata file"):
        found = _load(tmp_path)
    np.testing.assert_array_equal(found.images, masks)
    assert found.prompts == [f"a thing {i}" for i in range(5)]


def test_few_bad_files_are_skipped_with_one_warning_each(tmp_path: Path) -> None:
    masks = write_masks(tmp_path / "thing", 18)
    for name in ("thing/x.png", "thing/y.png"):
        (tmp_path / name).write_bytes(b"bad")
    with pytest.warns(UserWarning, match=r"[xy]\.png cannot be read as an image.*\(skipped\)") as caught:
        found = _load(tmp_path)
    assert [("x.png" in str(warning.message), "y.png" in str(warning.message)) for warning in caught] == [
        (True, False), (False, True),
    ]  # fmt: skip
    np.testing.assert_array_equal(found.images, masks)


def test_many_bad_files_are_an_error_that_names_five(tmp_path: Path) -> None:
    write_masks(tmp_path, 20)
    for i in range(7):
        (tmp_path / f"bad{i}.png").write_bytes(b"bad")
    with pytest.raises(DataError, match=r"7 of 27 .*bad0\.png.*bad4\.png.* \.\.\.; that is more than 10 %") as caught:
        _load(tmp_path)
    assert "bad5" not in str(caught.value)


@pytest.mark.parametrize(("max_bad", "said"), [(0.0, "1 of 3 .* more than 0 %"), (0.2, "more than 20 %"), (0.34, "")])
@pytest.mark.filterwarnings("ignore")
def test_the_share_of_bad_files_that_is_skipped_can_be_set(tmp_path: Path, max_bad: float, said: str) -> None:
    write_masks(tmp_path, 2)
    (tmp_path / "bad.png").write_bytes(b"bad")
    source = FolderSource(str(tmp_path), max_bad=max_bad)
    if said:
        with pytest.raises(DataError, match=said):
            load(source, CFG)
    else:
        assert len(load(source, CFG)[0]) == 2


def test_without_one_usable_image_nothing_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"bad")
    with pytest.raises(DataError, match=r"1 of 1 images cannot be used: .*all of them"):
        load(FolderSource(str(tmp_path), max_bad=1.0), CFG)


@pytest.mark.parametrize("made", ["missing", "empty", "file", "no images"])
def test_a_folder_without_images_is_an_error_that_says_what_was_sought(tmp_path: Path, made: str) -> None:
    folder = tmp_path / "here"
    if made == "file":
        folder.write_text("")
    elif made != "missing":
        folder.mkdir()
    if made == "no images":
        (folder / "a.svg").write_text("<svg/>")
    with pytest.raises(DataError, match=r"here.*\.png, \.jpg, .*--data\.source\.train"):
        _load(folder)


def test_a_file_name_that_is_not_utf8_is_read_and_shown(tmp_path: Path) -> None:
    source = write_mask(tmp_path / "a.png")
    try:
        os.rename(source, os.fsencode(tmp_path) + b"/\xff.png")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    found = _load(tmp_path)
    assert found.names == ["\\udcff.png"]
    assert found.prompts == ["Binary Mask"]


def test_control_characters_of_a_file_name_do_not_reach_the_terminal(tmp_path: Path) -> None:
    write_mask(tmp_path / "a\x1b[31m\n ü.png")
    (tmp_path / "b\x07.png").write_bytes(b"bad")
    found = read_folder(str(tmp_path), "PATH", "Binary Mask", CFG)
    assert found.names == ["a\\x1b[31m\\n ü.png"]
    assert "b\\x07.png" in str(found.bad_images[0])


def test_lines_too_thin_for_the_image_size_are_warned_of(tmp_path: Path) -> None:
    thin = np.zeros((200, 200), np.uint8)
    thin[100] = 1
    write_mask(tmp_path / "thin.png", thin)
    with pytest.warns(UserWarning, match=r"1 masks are empty at 8 pixels, .*thin\.png"):
        assert not _load(tmp_path).images.any()


def test_the_test_folder_is_read_when_given_and_rgb_when_asked(tmp_path: Path) -> None:
    write_mask(tmp_path / "train/a.png", np.pad(LETTER, 1))
    rgb = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    (tmp_path / "test").mkdir()
    Image.fromarray(rgb).save(tmp_path / "test/b.png")
    cfg = DataCfg(image_size=8, channels=3)
    train, test = load(FolderSource(str(tmp_path / "train"), str(tmp_path / "test")), cfg)
    assert test is not None
    np.testing.assert_array_equal(train.images[0], np.repeat(np.pad(LETTER, 1)[..., None] * np.uint8(255), 3, axis=2))
    np.testing.assert_array_equal(test.images[0], rgb)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_files_that_may_hold_labels_of_objects_are_warned_of_once(tmp_path: Path, dtype: type) -> None:
    """Of labels 1 to 8 a mask keeps the larger half, and nothing in the picture would say so."""
    labels = np.repeat(np.arange(9, dtype=dtype), 2)[None].repeat(18, 0)
    for name in ("a", "b"):
        Image.fromarray(labels).save(tmp_path / f"{name}.png")
    write_mask(tmp_path / "c.png")
    Image.fromarray((labels > 3).astype(dtype)).save(tmp_path / "d.png")  # 0 and 1
    Image.fromarray(labels * (np.iinfo(dtype).max // 8)).save(tmp_path / "e.png")  # grey levels
    with pytest.warns(UserWarning, match=r"2 files hold several values.*a\.png \(8 values\); b\.png \(8") as told:
        found = _load(tmp_path)
    assert sum("several values" in str(warning.message) for warning in told) == 1
    assert (found.images[0] == found.images[4]).all()
