"""Configs validate, travel as plain values, and the command line helps."""

import json
from dataclasses import replace
from typing import Any

import pytest

from configs.autoencoder_cfg import AutoencoderCfg, Stage1Cfg, VarianceExpansionCfg
from configs.checks import ConfigError
from configs.cli import differences, from_dict, parse_preset, to_dict
from configs.data_cfg import DataCfg, FolderSource
from configs.diffusion_cfg import Stage2Cfg, UNetCfg
from configs.presets import STAGE_1, STAGE_2
from configs.sampler_cfg import DDIMCfg, DDPMCfg, FlowCfg, ShortcutCfg
from configs.trainer_cfg import OptimCfg, TrainerCfg


@pytest.mark.parametrize("stage", [STAGE_1, STAGE_2])
def test_every_preset_survives_json(stage: dict[str, Any]) -> None:
    for make in stage.values():
        cfg = make()
        assert from_dict(type(cfg), json.loads(json.dumps(to_dict(cfg)))) == cfg


@pytest.mark.parametrize("sampler", [ShortcutCfg(grid=64), FlowCfg(heun=True), DDPMCfg(schedule="linear"), DDIMCfg()])
def test_the_kind_of_a_union_survives_json(sampler: Any) -> None:
    cfg = replace(Stage2Cfg(), sampler=sampler)
    assert from_dict(Stage2Cfg, json.loads(json.dumps(to_dict(cfg)))) == cfg


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
        (lambda: ShortcutCfg(grid=100), "a power of two"),
        (lambda: ShortcutCfg(share=0.5, every=2), "below 1/sampler.every"),
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


@pytest.mark.parametrize(
    ("argv", "helpful"),
    [
        (["anmals"], "did you mean 'animals'"),
        (["--sampler.stps", "3"], "--sampler.steps"),
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


def test_help_lists_the_fields_of_the_chosen_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_preset(STAGE_2, ["--help"], "train")
    shown = capsys.readouterr().out
    for text in ("--sampler.share", "--data.source.name", "--train.resume", "sampler:ddim", "folder:"):
        assert text in shown


def test_differences_name_each_field_once() -> None:
    old = Stage2Cfg()
    new = replace(old, data=replace(old.data, batch_size=7), sampler=FlowCfg())
    assert differences(old, new) == ["data.batch_size: 128 -> 7", "sampler: ShortcutCfg -> FlowCfg"]
    assert differences(old, old) == []
