"""Exported models, and those that come with the project."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import scripts.export
from configs.checks import ConfigError
from configs.cli import from_dict
from configs.diffusion_cfg import EMACfg, Stage2Cfg
from configs.export_cfg import ExportCfg
from configs.presets import STAGE_2
from configs.sampler_cfg import TrajectoryCfg
from configs.shipped import SHIPPED, checkpoint_path
from configs.whole_file import file_hash
from diffusion import DiffusionModule, load_diffusion
from models.checkpoint import CheckpointError, read_checkpoint
from models.export import KEY
from models.parts import ABOUT
from scripts.evaluate import main as evaluate
from scripts.export import main as export
from scripts.generate_masks import main as generate
from scripts.mask_model import load_mask_model
from scripts.seeded import Recipe, draw
from scripts.train_stage_2 import main as train_stage_2

LARGEST = 16e6  # bytes


@pytest.fixture
def checkpoint(tiny_diffusion: DiffusionModule, tmp_path: Path) -> Path:
    with torch.no_grad():
        for part in tiny_diffusion.average.parameters():
            part.add_(0.01 * torch.randn_like(part))  # no twin is the average
    cfg = tiny_diffusion.cfg  # with folders that concern nobody else
    tiny_diffusion.cfg = replace(cfg, autoencoder="my/stage1.ckpt", train=replace(cfg.train, run_dir="my/run"))
    content = {"state_dict": tiny_diffusion.state_dict(), "global_step": 7}
    tiny_diffusion.complete = True
    tiny_diffusion.on_save_checkpoint(content)
    torch.save(content, tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt"


def masks(path: Path | str, load: Callable[[Path | str], Any] = load_diffusion) -> torch.Tensor:
    module = load(path)
    noise = torch.randn(2, *module.latent_shape, generator=torch.Generator().manual_seed(0))
    return module.generate(["a cat", "a bird"], noise, steps=2)


def test_what_generates_needs_no_training_module(checkpoint: Path) -> None:
    torch.testing.assert_close(masks(checkpoint, load_mask_model), masks(checkpoint), rtol=0, atol=1e-5)


WEIGHT = "average.conv_out.weight"
DAMAGE: dict[str, Callable[[dict[str, Any]], object]] = {
    "a tensor is missing": lambda content: content["state_dict"].pop(WEIGHT),
    "a tensor is too many": lambda content: content["state_dict"].update(other=torch.zeros(1)),
    "a tensor has another shape": lambda content: content["state_dict"].update({WEIGHT: torch.zeros(2)}),
    "a number for a tensor": lambda content: content["state_dict"].update({WEIGHT: 1.0}),
    "no tensors": lambda content: content.pop("state_dict"),
    "no config": lambda content: content[KEY].pop("config"),
    "no stage 1": lambda content: content[KEY].pop("autoencoder"),
    "a word for a config": lambda content: content[KEY].update(config="small"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_parts_that_do_not_fit_are_one_kind_of_error(checkpoint: Path, damage: str) -> None:
    content = torch.load(checkpoint, weights_only=True)
    DAMAGE[damage](content)
    torch.save(content, checkpoint)
    with pytest.raises(CheckpointError, match=r"a\.ckpt: its weights and its config do not fit .*; make one with: "):
        load_diffusion(checkpoint)
    if damage != "a tensor is too many":  # as the training's own networks are
        with pytest.raises(CheckpointError, match="its weights and its config do not fit"):
            load_mask_model(checkpoint)


def test_an_export_in_fp32_draws_what_its_checkpoint_draws(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "model.safetensors"
    export(["--checkpoint", str(checkpoint), "--out", str(out), "--dtype", "fp32"])
    assert torch.equal(masks(out), masks(checkpoint))
    about = json.loads(out.with_suffix(".json").read_text())
    assert about["sha256"] == file_hash(out)
    assert about["training_steps"] == 7
    cfg = load_diffusion(checkpoint).cfg
    nowhere = replace(cfg, autoencoder="auto", train=replace(cfg.train, run_dir=""))
    assert from_dict(Stage2Cfg, about["config"]) == nowhere == load_diffusion(out).cfg
    assert [path.name for path in out.parent.iterdir() if path.name.startswith(".")] == []  # nothing half written


def test_a_blend_has_the_means_of_two_models(checkpoint: Path, tmp_path: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    for name, value in content["state_dict"].items():
        if name.startswith("average."):
            value.add_(1.0)
    content[KEY]["config"]["backbone"].pop("sketch")  # as in a file that is older than this field
    content[KEY]["config"]["text"].pop("articles")
    torch.save(content, tmp_path / "b.ckpt")
    out = tmp_path / "model.safetensors"
    export(["--checkpoint", str(checkpoint), "--blend", str(tmp_path / "b.ckpt"), "--share", "0.25", "--dtype", "fp32",
            "--out", str(out)])  # fmt: skip
    told = json.loads(out.with_suffix(".json").read_text())["blend"]
    assert told == {"sha256": file_hash(tmp_path / "b.ckpt"), "share": 0.25}
    before, after = load_diffusion(checkpoint).state_dict(), load_diffusion(out).state_dict()
    for name, value in before.items():
        if name.startswith("average."):
            torch.testing.assert_close(after[name], value + 0.25)
        elif name.startswith("autoencoder.average."):
            assert torch.equal(after[name], value)


@pytest.mark.parametrize(("change", "said"), [
    (lambda content: content["state_dict"].update({WEIGHT: torch.zeros(2)}), f"their networks differ ({WEIGHT})"),
    (lambda content: content["state_dict"].pop(WEIGHT), f"their networks differ ({WEIGHT})"),
    (lambda content: content["state_dict"]["autoencoder.latent_std"].add_(1), "differ (autoencoder.latent_std)"),
    (lambda content: content[KEY]["config"]["text"].update(articles=False), "their settings of text differ"),
    (lambda content: content[KEY]["config"]["sampler"].update(prediction="x"), "networks answer differs (sampler)"),
    (lambda content: content[KEY]["config"]["sampler"].update(train_guidance=2.0), "networks answer differs (sampler)"),
])  # fmt: skip
def test_models_that_are_not_alike_cannot_be_blended(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[dict[str, Any]], object],
    said: str,
) -> None:  # fmt: skip
    content = torch.load(checkpoint, weights_only=True)
    change(content)
    torch.save(content, tmp_path / "b.ckpt")
    export(["--checkpoint", str(checkpoint)])
    before = {path.name: path.read_bytes() for path in tmp_path.glob("model.*")}
    with pytest.raises(SystemExit):
        export(["--checkpoint", str(checkpoint), "--blend", str(tmp_path / "b.ckpt"), "--overwrite", "True"])
    assert said in capsys.readouterr().err.replace("\n", " ")
    assert {path.name: path.read_bytes() for path in tmp_path.glob("model.*")} == before


@pytest.mark.parametrize(("make", "said"), [
    (lambda: ExportCfg("a", share=0.3), "share is 0.3, but it must be left out"),
    (lambda: ExportCfg("a", blend="b", share=0.0), "share is 0.0, but it must be above 0"),
    (lambda: ExportCfg("a", blend="b", share=1.5), "share is 1.5"),
    (lambda: ExportCfg("a", blend=" "), "blend is ' '"),
    (lambda: ExportCfg("a", blend="b", format="onnx"), "blend first, and write the graph"),
])  # fmt: skip
def test_blends_that_would_change_nothing_or_cannot_be_are_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()


def test_an_export_in_bf16_is_half_as_large_and_draws_nearly_the_same(checkpoint: Path) -> None:
    export(["--checkpoint", str(checkpoint)])
    small = checkpoint.parent / "model.safetensors"
    export(["--checkpoint", str(checkpoint), "--out", str(checkpoint.parent / "large.safetensors"), "--dtype", "fp32"])
    assert small.stat().st_size < 0.6 * (checkpoint.parent / "large.safetensors").stat().st_size
    torch.testing.assert_close(masks(small), masks(checkpoint), rtol=0, atol=0.05)


def test_all_twins_of_an_export_begin_as_the_average(checkpoint: Path) -> None:
    export(["--checkpoint", str(checkpoint)])
    module = load_diffusion(checkpoint.parent / "model.safetensors")
    for twin in (module.net, module.teacher):
        for own, average in zip(twin.parameters(), module.average.parameters(), strict=True):
            assert torch.equal(own, average)


def test_an_export_of_any_training_can_be_begun_with(tiny_diffusion: DiffusionModule, tmp_path: Path) -> None:
    """One with a teacher that stayed as it was, and one whose errors were weighed by what they had been so far."""
    sampler = TrajectoryCfg(bands="whiten", jumps_from=0.0)
    cfg = replace(tiny_diffusion.cfg, init="icons", ema=EMACfg(0.99, 1.0), sampler=sampler)
    module = DiffusionModule(cfg, tiny_diffusion.autoencoder)
    content = {"state_dict": module.state_dict(), "global_step": 7}
    module.on_save_checkpoint(content)
    torch.save(content, tmp_path / "a.ckpt")
    export(["--checkpoint", str(tmp_path / "a.ckpt")])
    out = tmp_path / "model.safetensors"
    assert load_diffusion(out).cfg == load_mask_model(out).cfg == replace(cfg, init="")


def test_an_export_that_is_broken_off_leaves_no_hash_of_the_file_before(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model.safetensors"
    words = ["--checkpoint", str(checkpoint), "--out", str(out)]
    export(words)
    told = out.with_suffix(".json").read_text()
    out.with_suffix(".json").write_text(told.replace(json.loads(told)["sha256"], "0" * 64))  # as if of another file

    def broken(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("scripts.export.write_text", broken)
    with pytest.raises(SystemExit):
        export([*words, "--overwrite", "True"])
    load_mask_model(out)


def test_an_export_that_is_refused_leaves_all_of_the_one_before(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model.safetensors"
    words = ["--checkpoint", str(checkpoint), "--out", str(out)]
    export(words)
    before = out.read_bytes(), out.with_suffix(".json").read_bytes()

    def refused(*_: object) -> None:
        raise ConfigError("no")

    monkeypatch.setattr("models.export.write_export", refused)
    with pytest.raises(SystemExit):
        export([*words, "--overwrite", "True"])
    assert (out.read_bytes(), out.with_suffix(".json").read_bytes()) == before


def test_weights_and_a_graph_of_one_name_have_a_json_file_each(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export_graph(source: Path, out: Path, cfg: Any) -> dict[str, Any]:
        out.write_bytes(b"a graph")
        return {"sha256": file_hash(out)}

    monkeypatch.setattr(scripts.export, "export_graph", export_graph)
    export(["--checkpoint", str(checkpoint)])
    export(["--checkpoint", str(checkpoint), "--format", "onnx"])
    folder = checkpoint.parent
    load_mask_model(folder / "model.safetensors")  # is as its own file tells
    for graph, about in (("model.safetensors", "model.json"), ("model.onnx", "model.onnx.json")):
        assert json.loads((folder / about).read_text())["sha256"] == file_hash(folder / graph)


def test_an_export_never_replaces_a_file_unasked(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(["--checkpoint", str(checkpoint)])
    with pytest.raises(SystemExit):
        export(["--checkpoint", str(checkpoint)])
    assert "already there" in capsys.readouterr().err
    export(["--checkpoint", str(checkpoint), "--overwrite", "True"])


def test_steps_of_weights_are_refused_for_they_would_do_nothing() -> None:
    with pytest.raises(ConfigError, match="steps is 4, but it must be 1 in format safetensors"):
        ExportCfg("icons", steps=4)
    assert ExportCfg("icons", format="onnx", steps=4).steps == 4


@pytest.mark.parametrize("kind", ["cut", "empty", "foreign", "text"])
def test_a_file_that_is_no_export_is_refused_in_one_sentence(kind: str, checkpoint: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.safetensors"
    export(["--checkpoint", str(checkpoint), "--out", str(bad)])
    content = bad.read_bytes()
    if kind == "foreign":
        save_file({"weight": torch.ones(3)}, bad)
    else:
        bad.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"not a model at all"}[kind])
    with pytest.raises(CheckpointError, match=r"bad\.safetensors"):
        read_checkpoint(bad, "diffusion", "x")


# The preset of what was trained last on top of the model's own.
LAST_TRAINED = {"icons": "icons-critic", "animals": "animals-critic", "geometry": "geometry-reader"}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_was_trained_with_the_settings_of_its_preset(name: str) -> None:
    cfg = load_diffusion(checkpoint_path(name)).cfg
    last, base = STAGE_2[LAST_TRAINED.get(name, name)](), STAGE_2[name]()
    for part in ("data", "backbone", "text", "sketch", "reader", "sampler", "optim", "ema"):
        assert getattr(cfg, part) == getattr(last, part), part
    assert replace(last.backbone, sketch=base.backbone.sketch) == base.backbone
    assert last.text == base.text


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_is_whole_small_and_draws(name: str) -> None:
    path = checkpoint_path(name)
    assert path.stat().st_size < LARGEST
    assert json.loads(path.with_suffix(".json").read_text())["sha256"] == file_hash(path)
    assert read_checkpoint(path, "diffusion", "x")[KEY]["complete"]
    assert "/" not in path.with_suffix(".json").read_text()  # no folder of the machine that made it
    module = load_diffusion(path)
    prompts = ["a heart", "an elephant"]
    if name == "geometry":
        prompts = ["many medium round blobs, centre", "one large hollow blob, left"]
    noise = torch.randn(16, *module.latent_shape, generator=torch.Generator().manual_seed(0))
    p = module.generate([prompts[k % 2] for k in range(16)], noise, steps=1)
    drawn = p > 0.5
    assert ((p > 0.1) & (p < 0.9)).float().mean() < 0.1  # black or white, not grey
    assert (drawn.float().mean((1, 2, 3)) > 0.03).all()
    one, other = drawn[::2].float().mean(0), drawn[1::2].float().mean(0)
    assert (one - other).abs().mean() > 0.1  # the prompt decides


def test_generation_needs_no_checkpoint_and_says_which_model_it_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    generate(["--prompt", "a heart", "--num", "2"])
    assert "icons.safetensors" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "runs" / "masks-1").glob("*.png")) == [
        "a-heart-0000.png", "a-heart-0001.png", "grid.png",
    ]


def test_a_checkpoint_of_yours_comes_before_a_model_of_that_name_but_no_other_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert checkpoint_path("icons") == SHIPPED["icons"]
    Path("icons").mkdir()  # of pictures, say
    assert checkpoint_path("icons") == SHIPPED["icons"]
    Path("icons", ABOUT).touch()
    assert checkpoint_path("icons") == Path("icons")
    Path("animals").write_text("mine")
    assert checkpoint_path("animals") == Path("animals")


def test_a_shipped_model_can_be_judged_and_writes_beside_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(path.name for path in SHIPPED["animals"].parent.iterdir())
    evaluate(["--checkpoint", "animals", "--num", "20", "--steps", "1", "--classifier-steps", "20", "--search", "0"])
    assert json.loads((tmp_path / "runs" / "animals" / "evaluation.json").read_text())["num"] == 20
    assert sorted(path.name for path in SHIPPED["animals"].parent.iterdir()) == before


def test_training_can_begin_with_a_models_weights(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The learning rate is so small that the weights stay where they began."""
    monkeypatch.delenv("MASK_RUN_DIR", raising=False)
    export(["--checkpoint", str(checkpoint), "--dtype", "fp32"])
    model = str(tmp_path / "model.safetensors")
    train_stage_2([
        "animals-tiny", "--init", model, "--data.limit", "16", "--data.batch-size", "8", "--optim.lr", "1e-12",
        "--optim.muon-lr", "1e-12",
        "--train.max-steps", "2", "--train.run-dir", str(tmp_path / "tuned"), "--train.previews", "False",
        "--train.runs", str(tmp_path), "--train.accelerator", "cpu", "--train.precision", "fp32", "--data.val-fraction",
        "0.002",
    ])  # fmt: skip
    told = capsys.readouterr().out
    assert f"settings of init {model!r} in place of those asked for: backbone" in told
    assert "text.width: 128 -> 16" in told
    tuned, start = load_diffusion(tmp_path / "tuned" / "last.ckpt"), load_diffusion(model)
    assert (tuned.cfg.backbone, tuned.cfg.text) == (start.cfg.backbone, start.cfg.text)
    for part in ("net", "average", "autoencoder"):
        for now, then in zip(getattr(tuned, part).parameters(), getattr(start, part).parameters(), strict=True):
            torch.testing.assert_close(now, then, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("args", "said"), [
    (["--init", "icons"], "64-pixel images"),
    (["--init", "missing.safetensors"], "no such checkpoint; name icons, icons256, animals, geometry or a last.ckpt"),
    (["data.source:folder", "--data.source.train", "nope"], "the folder 'nope' does not exist"),
    (["--train.runs", "nope"], "or begin with a model that has one, such as --init icons"),
])  # fmt: skip
def test_a_model_that_cannot_begin_this_training_is_refused(
    args: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        train_stage_2(["animals-tiny", *args, "--train.run-dir", str(tmp_path / "run")])
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_bf16_draws_nearly_the_same_masks(checkpoint: Path) -> None:
    model = load_mask_model(checkpoint)
    way, cpu = Recipe(model.sampler, 1), torch.device("cpu")
    fp32, bf16 = (
        draw(model, ["a cat"] * 4, [0, 1, 2, 3], replace(way, bf16=low), cpu) for low in (False, True)
    )
    assert bf16.dtype == torch.float32
    assert 0 < (fp32 - bf16).abs().max() < 0.1
    frozen = draw(load_mask_model(checkpoint, bf16=True), ["a cat"] * 4, [0, 1, 2, 3], replace(way, bf16=True), cpu)
    assert (fp32 - frozen).abs().max() < 0.1
