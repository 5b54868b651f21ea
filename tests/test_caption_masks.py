"""Captions written beside masks: what is written, what is kept, and what is never replaced unasked."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.data_cfg import DataCfg
from data.folder import read_folder
from metrics.geometry import adherence
from scripts.caption_masks import main
from tests.data_fixtures import write_mask

SQUARE = np.zeros((32, 32), np.uint8)
SQUARE[2:9, 2:9] = 1


def rows(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_mask(tmp_path / "a.png", SQUARE)
    write_mask(tmp_path / "in/ü\\b.png", SQUARE[:, ::-1])
    return tmp_path


def test_captions_are_written_and_read_back_by_the_loader(folder: Path) -> None:
    main([str(folder), "--image-size", "32"])
    assert rows(folder) == [
        {"file_name": "a.png", "text": "one medium round blob, upper left"},
        {"file_name": "in/ü\\b.png", "text": "one medium round blob, upper right"},
    ]
    found = read_folder(str(folder), "PATH", "", DataCfg(image_size=32)).usable(0)
    assert found.prompts == [row["text"] for row in rows(folder)]
    assert adherence(torch.from_numpy(found.images), found.prompts)["all_right"] == 1.0
    assert sorted(path.name for path in folder.iterdir()) == ["a.png", "in", "metadata.jsonl"]


def test_captions_that_are_there_are_kept_or_replaced_when_asked(folder: Path) -> None:
    (folder / "a.txt").write_text("mine")
    main([str(folder)])
    assert [row["text"] for row in rows(folder)] == ["mine", "one medium round blob, upper right"]
    main([str(folder), "--overwrite", "True"])
    assert [row["text"] for row in rows(folder)] == [
        f"one medium round blob, upper {side}" for side in ("left", "right")
    ]


def test_masks_added_and_deleted_since_are_captioned_anew_when_asked(folder: Path) -> None:
    main([str(folder)])
    (folder / "a.png").unlink()
    write_mask(folder / "c.png", SQUARE[::-1])
    main([str(folder), "--overwrite", "True"])
    assert rows(folder) == [
        {"file_name": "c.png", "text": "one medium round blob, lower left"},
        {"file_name": "in/ü\\b.png", "text": "one medium round blob, upper right"},
    ]


@pytest.mark.filterwarnings("ignore")
def test_the_manifest_of_a_generated_folder_is_obeyed_whatever_is_replaced(tmp_path: Path) -> None:
    for name in ("a.png", "grid.png"):
        write_mask(tmp_path / name, SQUARE)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "metadata.csv").write_text("file_name,text\n")  # which nobody reads
    (tmp_path / "manifest.jsonl").write_text('{"file_name": "a.png", "text": "a square"}\n')
    for overwrite in ("False", "True"):
        main([str(tmp_path), "--overwrite", overwrite])
        assert [row["file_name"] for row in rows(tmp_path)] == ["a.png"]


@pytest.mark.parametrize("kind", ["written before", "in a subfolder", "no masks"])
def test_what_cannot_be_done_is_refused_and_nothing_is_changed(
    kind: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "metadata.jsonl is already there"
    if kind == "written before":
        (folder / "metadata.jsonl").write_text('{"file_name": "a.png"}\n')
    elif kind == "in a subfolder":
        (folder / "in/metadata.csv").write_text("file_name,text\nü\\b.png,mine\n")
        said = "metadata.csv has the last word"
    else:
        (folder / "a.png").unlink()
        (folder / "in/ü\\b.png").unlink()
        said = "holds no image"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as end:
        main([str(folder)])
    assert end.value.code == 2
    assert said in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
