"""Configs validate, travel as plain values, and the command line helps."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.autoencoder_cfg import AutoencoderCfg, Stage1Cfg, VarianceExpansionCfg
from configs.backbone_cfg import DiTCfg, UNetCfg
from configs.checks import ConfigError
from configs.cli import differences, from_dict, parse_preset, to_dict
from configs.data_cfg import DataCfg, FolderSource
from configs.diffusion_cfg import Stage2Cfg
from configs.presets import STAGE_1, STAGE_2
from configs.run_folder import choose_run_dir, release
from configs.sampler_cfg import DDIMCfg, DDPMCfg, FlowCfg, ShortcutCfg, TrajectoryCfg
from configs.trainer_cfg import OptimCfg, TrainerCfg

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("stage", [STAGE_1, STAGE_2])
def test_every_preset_survives_json(stage: dict[str, Any]) -> None:
    for make in stage.values():
        cfg = make()
        assert from_dict(type(cfg), json.loads(json.dumps(to_dict(cfg)))) == cfg


@pytest.mark.parametrize("sampler", [ShortcutCfg(grid=64), FlowCfg(heun=True), DDPMCfg(schedule="linear"), DDIMCfg()])
def test_the_kind_of_a_union_survives_json(sampler: Any) -> None:
    cfg = replace(Stage2Cfg(), sampler=sampler)
    assert from_dict(Stage2Cfg, json.loads(json.dumps(to_dict(cfg)))) == cfg


@pytest.mark.parametrize("backbone", [UNetCfg(multipliers=(1, 2, 3), gates=False), DiTCfg(patch_size=4)])
def test_the_kind_of_a_backbone_survives_json(backbone: Any) -> None:
    cfg = replace(Stage2Cfg(), backbone=backbone)
    assert from_dict(Stage2Cfg, json.loads(json.dumps(to_dict(cfg)))) == cfg


def test_configs_from_before_there_were_kinds_of_backbones_are_unets() -> None:
    old = {  # every field that a backbone's config had then
        "width": 64, "multipliers": [1, 2], "blocks": 2, "attention_sizes": [4], "head_channels": 32, "dropout": 0.0,
        "resample": "wavelet", "gate": "concat", "attention": "auto",
    }  # fmt: skip
    for plain in (old, old | {"type": "UNetCfg"}):
        cfg = from_dict(Stage2Cfg, to_dict(Stage2Cfg()) | {"backbone": plain})
        assert cfg.backbone == UNetCfg(width=64, multipliers=(1, 2), attention_sizes=(4,))


def test_foreign_fields_and_kinds_are_refused() -> None:
    plain = to_dict(Stage2Cfg())
    with pytest.raises(ConfigError, match="no field 'surprise'"):
        from_dict(Stage2Cfg, plain | {"surprise": 1})
    with pytest.raises(ConfigError, match="'OsSystem' is unknown"):
        from_dict(Stage2Cfg, plain | {"sampler": {"type": "OsSystem"}})
    with pytest.raises(ConfigError, match=r"data\.batch_size is -1"):  # read values are validated again
        from_dict(Stage2Cfg, plain | {"data": plain["data"] | {"batch_size": -1}})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DataCfg(image_size=4), "data.image_size is 4"),
        (lambda: DataCfg(val_fraction=1.0), "data.val_fraction is 1.0"),
        (lambda: FolderSource(train=" "), "data.source.train"),
        (lambda: TrainerCfg(seed=-1), "train.seed is -1"),
        (lambda: TrainerCfg(max_steps=0), "train.max_steps is 0"),
        (lambda: OptimCfg(lr=float("nan")), "optim.lr is nan"),
        (lambda: AutoencoderCfg(multipliers=(1,)), "autoencoder.multipliers"),
        (lambda: UNetCfg(width=65), "backbone.width is 65"),
        (lambda: UNetCfg(head_channels=48), "a divisor of backbone.width"),
        (lambda: UNetCfg(fastest_rate=math.inf), "backbone.fastest_rate is inf"),
        (lambda: ShortcutCfg(most_guidance=math.inf), "sampler.most_guidance is inf"),
        (lambda: UNetCfg(gate="sum", gates=False), "concat where backbone.gates is off"),
        (lambda: UNetCfg(conv_kernel=5), "backbone.conv_kernel is 5"),  # type: ignore[arg-type]  # the point
        (lambda: DiTCfg(patch_size=3), "backbone.patch_size is 3"),  # type: ignore[arg-type]  # the point
        (lambda: DiTCfg(depth=0), "backbone.depth is 0"),
        (lambda: ShortcutCfg(grid=100), "a power of two"),
        (lambda: ShortcutCfg(share=0.5, every=2), "below 1/sampler.every"),
        (lambda: TrajectoryCfg(jumps_from=1.5), "sampler.jumps_from is 1.5"),
        (lambda: DDPMCfg(zero_terminal_snr=True, prediction="eps"), "at pure noise"),
        (lambda: DDIMCfg(eta=2.0), "sampler.eta is 2.0"),
        (lambda: Stage1Cfg(data=DataCfg(image_size=34)), "take a multiple of 4, such as 32"),
    ],
)
def test_values_that_cannot_work_are_named(make: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        make()
    assert message in str(error.value)


def test_overrides_and_kinds_from_the_command_line() -> None:
    name, cfg = parse_preset(STAGE_2, ["animals", "--sampler.steps", "2", "--train.max_steps", "7"], "train")
    assert (name, cfg.sampler.steps, cfg.train.max_steps) == ("animals", 2, 7)
    _, cfg = parse_preset(STAGE_2, ["sampler:ddim", "--sampler.eta", "0.5"], "train")
    assert cfg.sampler == DDIMCfg(eta=0.5)
    _, stage_1 = parse_preset(STAGE_1, ["autoencoder.regulariser:ve"], "train")
    assert stage_1.autoencoder.regulariser == VarianceExpansionCfg()
    assert stage_1.autoencoder.width == STAGE_1["animals-tiny"]().autoencoder.width  # the preset's other values stay


def test_the_config_of_an_earlier_training_stands_in_the_place_of_a_preset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = replace(STAGE_2["icons"](), sampler=DDIMCfg(eta=0.25))
    path = tmp_path / "mine-stage2-20261123-142216" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(to_dict(cfg)))
    assert parse_preset(STAGE_2, [str(path)], "train", files=True) == ("mine", cfg)
    _, changed = parse_preset(STAGE_2, [str(path), "--train.resume", "auto"], "train", files=True)
    assert changed == replace(cfg, train=replace(cfg.train, resume="auto"))
    for presets, content, said in (
        (STAGE_1, path.read_text(), "it holds no Stage1Cfg"), (STAGE_2, "{", "cannot be read"),
        (STAGE_2, "[]", "holds no"), (STAGE_2, None, "No such file"),
        (STAGE_2, path.read_text().replace("0.25", "7.0"), "sampler.eta is 7.0"),
    ):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_text(content)
        with pytest.raises(SystemExit) as end:
            parse_preset(presets, [str(path)], "train", files=True)
        assert end.value.code == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "backbone"),
    [
        ("--backbone.width 96", replace(STAGE_2["animals-tiny"]().backbone, width=96)),
        ("backbone:unet --backbone.gates True", replace(STAGE_2["animals-tiny"]().backbone, gates=True)),
        ("--backbone.conv-kernel 2 sampler:ddim", replace(STAGE_2["animals-tiny"]().backbone, conv_kernel=2)),
        ("backbone:dit", DiTCfg()),
        ("--train.seed 1 backbone:dit --backbone.width 128", DiTCfg(width=128)),
        ("backbone:dit --backbone.depth 3 sampler:ddim --backbone.patch-size 4", DiTCfg(depth=3, patch_size=4)),
        ("sampler:ddim --sampler.eta 0.5 backbone:dit", DiTCfg()),
    ],
)
def test_backbones_from_the_command_line(argv: str, backbone: Any) -> None:
    _, cfg = parse_preset(STAGE_2, argv.split(), "train")
    assert cfg.backbone == backbone
    assert isinstance(cfg.sampler, DDIMCfg) == ("sampler:ddim" in argv)


@pytest.mark.parametrize(
    ("argv", "helpful"),
    [
        (["anmals"], "did you mean 'animals'"),
        (["--sampler.stps", "3"], "--sampler.steps"),
        (["backbone:dit", "--backbone.width", "50"], "backbone.width is 50"),
        (["--train.seed", "-3"], "from 0 to 4294967295"),
        (["--train.seed", "many"], "seed"),
    ],
)
def test_mistakes_end_with_2_and_a_hint(argv: list[str], helpful: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse_preset(STAGE_2, argv, "train")
    assert end.value.code == 2
    shown = capsys.readouterr()
    assert helpful in shown.err + shown.out


@pytest.mark.parametrize("command", ["train_stage_2", "generate_masks"])
def test_help_of_which_little_is_read_says_nothing_else(command: str) -> None:
    """As by --help | head."""
    shown, writes = os.pipe()
    os.close(shown)
    started = [sys.executable, "-m", f"scripts.{command}", "--help"]
    done = subprocess.run(started, stdout=writes, stderr=subprocess.PIPE, text=True, cwd=ROOT, timeout=60)
    os.close(writes)
    assert (done.returncode, done.stderr) == (141, "")


def test_help_lists_the_fields_of_the_chosen_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_preset(STAGE_2, ["--help"], "train")
    shown = capsys.readouterr().out
    for text in ("--sampler.share", "--data.source.name", "--train.resume", "sampler:ddim", "backbone:dit", "folder:"):
        assert text in shown


def test_differences_name_each_field_once() -> None:
    old = Stage2Cfg()
    new = replace(old, data=replace(old.data, batch_size=7), sampler=FlowCfg())
    assert differences(old, new) == ["data.batch_size: 128 -> 7", "sampler: ShortcutCfg -> FlowCfg"]
    assert differences(old, old) == []


def test_a_run_folder_goes_to_child_processes_but_to_no_second_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MASK_RUN_DIR", raising=False)
    first = choose_run_dir(TrainerCfg(run_dir=str(tmp_path / "a")), "x")
    second = choose_run_dir(TrainerCfg(run_dir=str(tmp_path / "b")), "x")
    assert (first, second) == (tmp_path / "a", tmp_path / "b")
    own = tmp_path / "own"
    as_child = f"from configs.run_folder import *; print(choose_run_dir(TrainerCfg(run_dir='{own}'), 'x'))"
    for chosen in (second, own):
        said = subprocess.run([sys.executable, "-c", as_child], capture_output=True, text=True, check=True, cwd=ROOT)
        assert said.stdout.strip() == str(chosen)
        release(second)  # its training ends: what is started now is a training of its own
