"""What check_data says of a folder, and that it answers as a training would."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.check_data_cfg import CheckDataCfg
from configs.data_cfg import DataCfg
from data.check import summary
from data.folder import read_folder
from data.masks import DataError
from data.sources import load_splits
from scripts.check_data import check, main
from tests.data_fixtures import LETTER, random_masks, write_mask, write_masks


def test_the_summary_counts_what_there_is(tmp_path: Path) -> None:
    write_mask(tmp_path / "a.png")
    write_mask(tmp_path / "b.png", np.rot90(LETTER))
    write_mask(tmp_path / "c.png", np.pad(LETTER, 1)[:, :6])
    write_mask(tmp_path / "empty.png", np.zeros((6, 6), np.uint8))
    write_mask(tmp_path / "full.png", np.ones((8, 8), np.uint8))
    thin = np.zeros((100, 100), np.uint8)
    thin[5] = 1
    write_mask(tmp_path / "thin.png", thin)
    ramp = np.arange(36, dtype=np.uint8).reshape(6, 6) * 7
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    (tmp_path / "a.txt").write_text("one two three four")
    (tmp_path / "b.txt").write_text("")
    (tmp_path / "bad.png").write_bytes(b"")
    found = read_folder(str(tmp_path), "PATH", "Binary Mask", DataCfg(image_size=8))
    grey = sum(24.5 < value < 220.5 for value in range(0, 252, 7)) / 36
    area = (8 / 36 + 8 / 36 + 8 / 48 + 0 + 1 + (ramp > 127.5).mean() + 1 / 100) / 7
    assert summary(found, lambda prompt: len(prompt.split()), 3) == {
        "images": "7 usable, 1 bad",
        "sizes": "6x6 (4), 6x8 (1), 8x8 (1) and 1 others",
        "grey": f"{grey / 7:.1%} of the pixels; in more than a tenth: 1: ramp.png",
        "foreground": f"{area:.1%} of the pixels",
        "empty": "1: empty.png",
        "full": "1: full.png",
        "lost": "1: thin.png (empty once shrunk to the size of the training)",
        "copies": "2 equal another, maybe flipped, turned or shifted; a.png = b.png",
        "captions": "5 missing (they get 'Binary Mask'), 1 blank",
        "prompts": "3 different: 'Binary Mask' (5), 'one two three four' (1), '' (1)",
        "cut": "1 prompts are longer than 3 tokens; the longest has 4",
    }


def _bad(folder: Path) -> None:
    write_masks(folder, 8)
    (folder / "x.png").write_bytes(b"bad")


def _few(folder: Path) -> None:
    write_mask(folder / "a.png")
    write_mask(folder / "b.png", np.flipud(LETTER))


def _captions(folder: Path) -> None:
    write_masks(folder, 8)
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "00.png"}) + "\nnot json\n[]\n")


FOLDERS: dict[str, tuple[Callable[[Path], object], bool, list[str]]] = {
    "good": (lambda folder: write_masks(folder, 8), True, ["8 usable, 0 bad", "training would begin with "]),
    "too many bad": (_bad, False, ["x.png cannot be read", "training would fail: 1 of 9 images"]),
    "one mask": (_few, False, ["training would fail: the data set has 2 masks"]),
    "captions": (_captions, False, ["metadata.jsonl, line 2: not JSON", "metadata.jsonl, line 3: no file_name",
                                    "training would fail: "]),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOLDERS)
@pytest.mark.filterwarnings("ignore")
def test_it_says_no_where_training_raises(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, good, said = FOLDERS[kind]
    make(tmp_path)
    cfg = CheckDataCfg(str(tmp_path), image_size=8)
    assert check(cfg) == good
    told = capsys.readouterr().out
    for text in said:
        assert text in told
    if good:
        train, held_out = load_splits(cfg.data)
        assert f"training would begin with {len(train)} masks, and {len(held_out)} held out" in told
    else:
        with pytest.raises(DataError) as caught:
            load_splits(cfg.data)
        assert f"training would fail: {caught.value}" in told


def test_a_test_folder_that_is_the_training_folder_is_told_as_a_training_would(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_masks(tmp_path, 8)
    with pytest.raises(SystemExit, match="1"):
        main([str(tmp_path), "--test", str(tmp_path), "--image-size", "8"])
    assert "training would fail: all 8 training masks are also in the test set" in capsys.readouterr().out


def test_a_test_folder_is_read_too_and_copies_of_it_are_not_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_masks(tmp_path / "train", 8)
    write_mask(tmp_path / "test/a.png", np.rot90(random_masks(8).images[0]))
    main([str(tmp_path / "train"), "--test", str(tmp_path / "test"), "--image-size", "8"])
    assert "training would begin with 7 masks, and 1 held out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [(["none"], 2, "the folder 'none' does not exist"), (["none"], 2, "or name another one (PATH)"),
     (["none", "--max-bad", "2"], 2, "data.source.max_bad is 2.0"),
     (["."], 1, "")],
)  # fmt: skip
def test_the_exit_code_tells_a_wrong_option_from_unusable_data(
    args: list[str], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    write_mask(tmp_path / "only.png")
    with pytest.raises(SystemExit) as end:
        main(args)
    assert end.value.code == code
    assert said in capsys.readouterr().err
