"""Both stages from shards, by the commands."""

import json
from pathlib import Path

import pytest
import torch

from scripts import generate_masks, make_shards, train_stage_1, train_stage_2
from tests.data_fixtures import write_masks

TINY = [
    "--data.image-size", "16", "--data.batch-size", "4", "--train.max-steps", "3", "--train.val-every", "2",
    "--train.accelerator", "cpu", "--train.precision", "fp32", "--train.channels-last", "off",
]  # fmt: skip
WIDTHS = ["--backbone.width", "32", "--backbone.multipliers", "1", "2", "--backbone.blocks", "1"]


@pytest.mark.slow
def test_both_stages_and_masks_from_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MASK_RUN_DIR", raising=False)
    write_masks(tmp_path / "masks" / "a_blob", 40, size=16)
    masks, shards, runs = (str(tmp_path / name) for name in ("masks", "shards", "runs"))
    make_shards.main(["folder", "--data.source.train", masks, *TINY[:2], "--out", shards, "--samples", "9"])
    common = ["shards", "--data.source.train", shards, *TINY, "--train.runs", runs]
    train_stage_1.main([*common, "--autoencoder.width", "8"])
    train_stage_2.main([*common, *WIDTHS, "--train.quality", "8"])
    said = capsys.readouterr().out
    assert said.count("data: a stream of shards to train on") == 2
    assert "encoding" not in said  # latents are made in each step
    (run,) = Path(runs).glob("shards-stage2-*")
    assert json.loads((run / "run.json").read_text())["status"] == "complete"
    saved = torch.load(run / "last.ckpt", weights_only=True)
    assert saved["MaskDataModule"]["same"]["shards"] == 5
    assert "val/memorised" in (run / "csv" / "metrics.csv").read_text()
    generate_masks.main(["--checkpoint", str(run / "last.ckpt"), "--prompt", "a blob", "--num", "2", "--out",
                         str(tmp_path / "drawn")])  # fmt: skip
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 3  # two masks and the grid
