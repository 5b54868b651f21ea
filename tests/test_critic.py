"""Ordinary images: LPIPS with weights that the user has, and a critic trained beside the autoencoder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from conftest import TINY_1, TINY_TRAIN
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.image.lpips import _LPIPS

from autoencoder import AutoencoderModule, image_loss, load_autoencoder
from configs.autoencoder_cfg import AutoencoderCfg, L1LossCfg
from configs.checks import ConfigError
from models.critic import PatchCritic, criticised, lpips, lpips_error
from scripts.train_stage_1 import main as train_stage_1


@pytest.fixture(scope="module", params=["alexnet", "vgg16"])
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A file such as torchvision gives out, with random weights, and what torchmetrics calls the network."""
    torch.manual_seed(0)
    make = getattr(torchvision.models, request.param)
    path = tmp_path_factory.mktemp("weights") / f"{request.param}.pth"
    torch.save({k: v.half() for k, v in make(weights=None).state_dict().items() if k.startswith("features.")}, path)
    return str(path), request.param.removesuffix("net").removesuffix("16")


def test_lpips_is_that_of_the_file(network: tuple[str, str]) -> None:
    path, kind = network
    own = _LPIPS(net=kind, pnet_rand=True)  # type: ignore[arg-type]  # one of its names
    state = torch.load(path, weights_only=True)
    for number, piece in ((int(name.split(".")[1]), own_layer) for name, own_layer in named_layers(own)):
        piece.weight.data.copy_(state[f"features.{number}.weight"])
        piece.bias.data.copy_(state[f"features.{number}.bias"])
    p, target = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(lpips_error(path, p, target), own(2 * p - 1, 2 * target - 1).mean())
    assert float(lpips_error(path, p, p)) == 0
    grey = p[:, :1]
    torch.testing.assert_close(lpips_error(path, grey, target[:, :1]), lpips_error(
        path, grey.repeat(1, 3, 1, 1), target[:, :1].repeat(1, 3, 1, 1)
    ))  # fmt: skip
    p.requires_grad_()
    cfg = L1LossCfg(lpips=0.5, lpips_network=path)
    loss = image_loss(cfg, p, target)
    torch.testing.assert_close(loss, F.l1_loss(p, target) + 0.5 * lpips_error(path, p, target))
    loss.backward()
    assert p.grad is not None
    assert p.grad.abs().sum() > 0
    assert not any(weight.requires_grad for weight in lpips(path).parameters())


def named_layers(own: _LPIPS) -> list[tuple[str, Any]]:
    return [(name, layer) for name, layer in own.net.named_modules() if isinstance(layer, torch.nn.Conv2d)]


def test_a_file_that_holds_something_else_is_named(tmp_path: Path) -> None:
    for name, content in (("text.pth", None), ("other.pth", {"features.0.weight": torch.zeros(8, 3, 3, 3)})):
        path = tmp_path / name
        path.write_text("no weights") if content is None else torch.save(content, path)
        with pytest.raises(ConfigError, match=f"{name}.*holds neither VGG16 nor AlexNet"):
            lpips(str(path))
    with pytest.raises(ConfigError, match="there is no such file"):
        lpips(str(tmp_path / "none.pth"))


@pytest.mark.parametrize(("made", "said"), [
    (lambda: L1LossCfg(lpips=1.0), "lpips_network"),
    (lambda: L1LossCfg(lpips_network="a.pth"), "above 0"),
    (lambda: L1LossCfg(critic=-1.0), "critic"),
    (lambda: L1LossCfg(critic_begin=1.0), "critic_begin"),
    (lambda: AutoencoderCfg(loss=L1LossCfg(critic=1.0), equivariance=0.5), "equivariance"),
    (lambda: replace(TINY_1, autoencoder=AutoencoderCfg(loss=L1LossCfg(critic=1.0)),
                     train=replace(TINY_TRAIN, strategy="fsdp")), "train.strategy"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused(made: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        made()


def played(weight: float) -> tuple[PatchCritic, Tensor, Tensor, Tensor, dict[str, Tensor]]:
    torch.manual_seed(0)
    critic, x, last = PatchCritic(3), torch.rand(4, 3, 32, 32), torch.randn(3, 3, 1, 1, requires_grad=True)
    p = F.conv2d(x, last).sigmoid()
    rest = F.l1_loss(p, x)
    return critic, x, last, rest, criticised(critic, x, p, rest, last, weight)


def test_neither_player_learns_from_the_other_ones_loss() -> None:
    critic, x, last, rest, parts = played(0.7)
    assert critic(x).shape == (4, 1, 4, 4)
    learned = torch.autograd.grad(parts["critic"], list(critic.parameters()), retain_graph=True)
    assert all(gradient.abs().sum() > 0 for gradient in learned[:-1])  # the last bias moves both alike
    assert torch.autograd.grad(parts["critic"], last, retain_graph=True, allow_unused=True)[0] is None
    both = parts["critic"] + parts["deceived"] + rest
    for own, whole in zip(learned, torch.autograd.grad(both, list(critic.parameters()), retain_graph=True),
                          strict=True):  # fmt: skip
        torch.testing.assert_close(own, whole)
    of_rest, deceived = (
        torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (rest, parts["deceived"])
    )
    torch.testing.assert_close(deceived, 0.7 * of_rest)


def test_the_critics_loss_is_the_hinge_and_deceiving_it_is_being_taken_for_real() -> None:
    critic, x, last, rest, parts = played(0.7)
    p = F.conv2d(x, last).sigmoid()
    hinge = ((1 - critic(x)).clamp_min(0).mean() + (1 + critic(p)).clamp_min(0).mean()) / 2
    torch.testing.assert_close(parts["critic"], hinge)
    deceived = -critic(p).mean()
    even = torch.autograd.grad(rest, last, retain_graph=True)[0].norm()
    even = even / torch.autograd.grad(deceived, last, retain_graph=True)[0].norm()
    torch.testing.assert_close(parts["deceived"], 0.7 * even * deceived)
    assert float(played(0.0)[4]["deceived"]) == 0


def test_a_critic_learns_to_tell_and_an_image_does_not_depend_on_the_others() -> None:
    torch.manual_seed(0)
    critic = PatchCritic(1, 16)
    optimiser = torch.optim.Adam(critic.parameters(), 2e-3)
    for _ in range(60):
        real = torch.rand(16, 1, 32, 32).round()
        rebuilt = F.avg_pool2d(real, 3, 1, 1)
        parts = criticised(critic, real, rebuilt, real.sum(), real, 0.0)
        optimiser.zero_grad()
        parts["critic"].backward()
        optimiser.step()
    assert float(parts["critic"].detach()) < 0.1
    assert float(critic(real).mean()) > 0.5 > -0.5 > float(critic(rebuilt).mean())
    torch.testing.assert_close(critic(real[:1]), critic(real)[:1], rtol=0, atol=1e-4)


def test_an_image_counts_for_the_critic_from_the_share_of_the_training_that_was_asked_for() -> None:
    loss = L1LossCfg(critic=0.5, critic_begin=0.5)
    cfg = replace(TINY_1, autoencoder=replace(TINY_1.autoencoder, loss=loss))
    torch.manual_seed(0)
    module = AutoencoderModule(cfg).with_judges().train()
    module.log_dict = lambda *_, **__: None  # type: ignore[method-assign]  # there is no trainer to log to
    x = {"image": torch.rand(4, 1, 32, 32)}
    for used, counts in ((0.4, False), (0.6, True)):
        module.used = used
        assert bool(module.training_step(x, 0)["deceived"]) == counts


@pytest.mark.slow
def test_images_are_trained_on_with_both_resumed_and_handed_on_without(
    network: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MASK_RUN_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    for i in range(24):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(f"images/{i}.png")
    words = ["rgb", "--data.source.train", "images", "--data.image-size", "32", "--data.batch-size", "8",
             "--autoencoder.width", "8", "--autoencoder.blocks", "1", "--autoencoder.loss.lpips", "0.5",
             "--autoencoder.loss.critic", "0.5", "--autoencoder.loss.critic-begin", "0", "--train.accelerator", "cpu",
             "--train.precision", "fp32", "--train.channels-last", "off", "--train.val-every", "2",
             "--train.log-every", "1"]  # fmt: skip
    with pytest.raises(SystemExit):
        train_stage_1([*words, "--autoencoder.loss.lpips-network", "none.pth", "--train.run-dir", "none"])
    assert "there is no such file" in " ".join(capsys.readouterr().err.split())
    words += ["--autoencoder.loss.lpips-network", network[0]]
    train_stage_1([*words, "--train.max-steps", "2", "--train.run-dir", "one"])
    train_stage_1([*words, "--train.max-steps", "4", "--train.run-dir", "one", "--train.resume", "auto"])
    train_stage_1([*words, "--train.max-steps", "4", "--train.run-dir", "other"])
    one, other = (torch.load(f"{name}/last.ckpt", weights_only=True) for name in ("one", "other"))
    assert any(name.startswith("critic.") for name in one["state_dict"])
    assert not any("lpips" in name for name in one["state_dict"])
    trained, again = load_autoencoder("one/last.ckpt"), load_autoencoder("other/last.ckpt")
    assert not any(name.startswith("critic.") for name in trained.state_dict())
    assert set(trained.state_dict()) == set(AutoencoderModule(trained.cfg).state_dict())
    assert one["state_dict"].keys() == other["state_dict"].keys()
    for name, value in other["state_dict"].items():  # the critic and its optimiser went on, too
        assert torch.equal(value, one["state_dict"][name]), name
    critic = [name for name in one["state_dict"] if name.startswith("critic.")]
    kept = one["optimizer_states"][0]["state"]
    assert len(kept) == len(list(trained.vae.parameters())) + len(critic)  # both are trained, and gone on with
    assert {int(state["step"]) for state in kept.values()} == {4}
    assert all(value.isfinite().all() for value in again.state_dict().values())
