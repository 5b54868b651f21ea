"""The judgement while training, around an autoencoder that changes nothing."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_metrics_evaluate import Same, bars

from configs.diffusion_cfg import CriticCfg
from configs.sampler_cfg import DDIMCfg, DDPMCfg, FlowCfg, SamplerCfg, ShortcutCfg
from metrics.callbacks import Drawing
from metrics.classifier import MaskClassifier, save_classifier
from metrics.judge import forget_other
from metrics.quality import Prompted, QualityMonitor
from samplers import build_sampler


def test_a_diffusion_network_is_drawn_in_no_more_steps_than_it_has() -> None:
    module = SimpleNamespace(sampler=build_sampler(DDIMCfg(timesteps=8, steps=8)))
    assert Drawing((1, 4, 32)).counts(module) == [1, 4]
    module.sampler = build_sampler(ShortcutCfg())
    assert Drawing((1, 4, 32)).counts(module) == [1, 4, 32]


@pytest.mark.parametrize(("cfg", "steps"), [
    (ShortcutCfg(), 1), (FlowCfg(), 32), (DDIMCfg(timesteps=8, steps=8), 4), (ShortcutCfg(steps=3), 4), (DDPMCfg(), 32),
])  # fmt: skip
def test_the_best_checkpoint_is_that_of_the_steps_that_the_model_takes(cfg: SamplerCfg, steps: int) -> None:
    monitor = QualityMonitor(*[Prompted(torch.zeros(0), [])] * 2, 32, 0, Path())
    module = SimpleNamespace(sampler=build_sampler(cfg), cfg=SimpleNamespace(critic=CriticCfg()))
    assert monitor.chosen(module) == f"val/frechet_{steps}"
    module.cfg.critic = CriticCfg(width=8)  # which looks at single steps, however many the model takes
    assert monitor.chosen(module) == "val/frechet_1"


def test_noise_that_a_sampler_adds_is_the_same_at_every_validation_and_moves_no_other_stream() -> None:
    held_out = bars(40, 0)
    monitor = QualityMonitor(
        Prompted(torch.zeros(0), []), Prompted(torch.from_numpy(held_out.images), held_out.prompts), 32, 0, Path()
    )
    module: Any = SimpleNamespace(
        device=torch.device("cpu"), latent_shape=(1, 2, 2),
        generate=lambda prompts, noise, steps: torch.rand(len(prompts), 1, 16, 16),
    )  # fmt: skip
    trainer: Any = SimpleNamespace(world_size=1, global_rank=0)
    _, prompts, noise = monitor.questions(module, 1)
    torch.manual_seed(7)
    drawn = [monitor.draw(trainer, module, prompts, noise, 4) for _ in range(2)]
    assert torch.equal(*drawn)
    after = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(after, torch.rand(3))


def test_each_process_draws_its_own_share_of_the_questions() -> None:
    held_out = bars(40, 0)
    monitor = QualityMonitor(
        Prompted(torch.zeros(0), []), Prompted(torch.from_numpy(held_out.images), held_out.prompts), 33, 0, Path()
    )
    shares: list[torch.Tensor] = []

    def gathered(mine: torch.Tensor) -> torch.Tensor:
        shares.append(mine)
        return torch.stack([mine, mine])

    module: Any = SimpleNamespace(
        device=torch.device("cpu"), latent_shape=(1, 4, 4), all_gather=gathered,
        generate=lambda prompts, noise, steps: noise + torch.tensor([len(p) for p in prompts]).view(-1, 1, 1, 1) % 2,
    )  # fmt: skip
    _, prompts, noise = monitor.questions(module, 2)
    assert len(prompts) == 32
    for rank in range(2):
        trainer: Any = SimpleNamespace(world_size=2, global_rank=rank)
        assert len(monitor.draw(trainer, module, prompts, noise, 4)) == 32
    alone: Any = SimpleNamespace(world_size=1, global_rank=0)
    assert torch.equal(torch.cat(shares), monitor.draw(alone, module, prompts, noise, 4))


def test_a_judge_of_other_prompts_or_another_size_is_trained_anew(tmp_path: Path) -> None:
    path, masks, prompts = tmp_path / "classifier.pt", torch.zeros(4, 16, 16), ["a", "b", "a", "b"]
    forget_other(path, masks, prompts)
    for images, asked in ((masks, ["a", "b", "c", "b"]), (torch.zeros(4, 8, 8), prompts)):
        save_classifier(MaskClassifier(["a", "b"]), path, 16)
        forget_other(path, masks, prompts)
        assert path.exists()
        with pytest.warns(UserWarning, match="is trained anew"):
            forget_other(path, images, asked)
        assert not path.exists()
    path.write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="is trained anew"):
        forget_other(path, masks, prompts)
    assert not path.exists()


def test_the_real_masks_beside_the_samples_are_drawn_from_all_kinds(tmp_path: Path) -> None:
    """Training sets come sorted by class: their first rows would be one class, and no floor."""
    training, held_out = bars(300, 0, "bar"), bars(300, 1, "bar")
    by_kind = torch.from_numpy(training.images)[[*range(1, 300, 2), *range(0, 300, 2)]]  # lying, then standing
    real = torch.from_numpy(held_out.images)
    monitor = QualityMonitor(
        Prompted(by_kind, training.prompts), Prompted(real, held_out.prompts), num=100, seed=0, folder=tmp_path
    )
    module = SimpleNamespace(autoencoder=Same())
    alone: Any = SimpleNamespace(is_global_zero=True, strategy=SimpleNamespace(broadcast=lambda value: value))
    monitor.prepare(alone, module)
    numbers = monitor.judge(module, real[:100], held_out.prompts[:100], list(range(100)), 1)
    assert monitor.yardstick is not None
    one_kind = monitor.yardstick.frechet(by_kind[:100])
    assert numbers["frechet_real"] < one_kind / 10
    assert numbers["frechet_1"] < one_kind / 10
    assert {"retrieval_1", "memorised", "memorised_above"} <= numbers.keys()
    assert "frechet_real" not in monitor.judge(module, real[:100], held_out.prompts[:100], list(range(100)), 4)
