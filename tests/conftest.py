"""Shared fixtures: tiny models that are made in a moment. Fast tests run first."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from autoencoder import AutoencoderModule
from configs.autoencoder_cfg import AutoencoderCfg, Stage1Cfg
from configs.backbone_cfg import UNetCfg
from configs.data_cfg import DataCfg, EmbeddedSource
from configs.diffusion_cfg import Stage2Cfg, TextCfg
from configs.sampler_cfg import ShortcutCfg
from configs.trainer_cfg import OptimCfg, TrainerCfg
from diffusion import DiffusionModule

TINY_DATA = DataCfg(EmbeddedSource("animals32"), image_size=32, batch_size=8, limit=16, val_fraction=0.005)
TINY_TRAIN = TrainerCfg(
    max_steps=2, val_every=2, log_every=1, accelerator="cpu", precision="fp32", channels_last="off", previews=False,
    quality=0,
)
TINY_1 = Stage1Cfg(
    data=TINY_DATA, autoencoder=AutoencoderCfg(width=8, multipliers=(1, 1, 2)), optim=OptimCfg(warmup_steps=0),
    train=TINY_TRAIN,
)
TINY_2 = Stage2Cfg(
    data=TINY_DATA, backbone=UNetCfg(width=32, multipliers=(1, 2), blocks=1, attention_sizes=(4,), fastest_rate=100.0),
    text=TextCfg(width=16), sampler=ShortcutCfg(), optim=OptimCfg(warmup_steps=0), train=TINY_TRAIN,
)


COLLECTED: dict[str, bool] = {}
"""file.py::test of everything collected -> whether it has the marker "faults"."""
CHOSEN: set[str] = set()
"""Of these, what is to run."""
OUTCOMES: dict[str, set[str]] = {}
"""file.py::test -> how its cases ended so far."""


def plain_name(nodeid: str) -> str:
    return nodeid.split("[")[0].rpartition("/")[2]


def turn(item: pytest.Item) -> int:
    """Fast tests first, then the longest of the slow ones: where several processes share them, none ends alone."""
    slow = item.get_closest_marker("slow")
    return 0 if slow is None else 1 if slow.kwargs.get("longest") else 2


@pytest.hookimpl(tryfirst=True)  # before any are deselected
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    COLLECTED.update({plain_name(item.nodeid): item.get_closest_marker("faults") is not None for item in items})
    together = {item.path for item in items if turn(item) == 1}  # what a module makes for its tests is made once
    items.sort(key=lambda item: 1 if turn(item) and item.path in together else turn(item))


def pytest_collection_finish(session: pytest.Session) -> None:
    CHOSEN.update(plain_name(item.nodeid) for item in session.items)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        OUTCOMES.setdefault(plain_name(report.nodeid), set()).add(report.outcome)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Where several processes share the tests (pytest-xdist), they collect, and this one sees all outcomes."""
    told = getattr(node, "workeroutput", {})
    COLLECTED.update(told.get("collected", {}))
    CHOSEN.update(told.get("chosen", ()))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    config = session.config
    if hasattr(config, "workeroutput"):
        config.workeroutput |= {"collected": COLLECTED, "chosen": sorted(CHOSEN)}
    elif exitstatus == pytest.ExitCode.OK and not config.getoption("collectonly"):
        from test_faults_matrix import unproven

        marked = "" if config.getoption("keyword") else config.getoption("markexpr")
        elsewhere = {Path(path).name for path in config.getoption("ignore") or ()}
        if found := unproven(COLLECTED, CHOSEN, OUTCOMES, marked, elsewhere):
            print("\ndocs/faults.md names tests that this run did not hold:", *found, sep="\n  ")
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(autouse=True)
def steady_threads() -> None:
    """As many for each test, whatever the one before has left: more than there are cores wait for each other."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


@pytest.fixture
def tiny_autoencoder() -> AutoencoderModule:
    torch.manual_seed(0)
    module = AutoencoderModule(TINY_1, "embedded:animals32 32px 1ch")
    module.latent_mean.copy_(torch.tensor([0.5, -1.0, 0.0, 2.0]).reshape(4, 1, 1))
    module.latent_std.copy_(torch.tensor([0.5, 2.0, 1.0, 3.0]).reshape(4, 1, 1))
    module.complete = True
    return module


@pytest.fixture
def tiny_diffusion(tiny_autoencoder: AutoencoderModule) -> DiffusionModule:
    """An untrained model whose network hears all that it is told: no part of it is switched off."""
    torch.manual_seed(1)
    module = DiffusionModule(replace(TINY_2), tiny_autoencoder, "embedded:animals32 32px 1ch")
    for net in (module.net, module.average):
        torch.manual_seed(2)
        for weight in net.parameters():
            if not weight.any():
                torch.nn.init.normal_(weight, std=0.05)
    return module.eval()


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    """A file to name where a fake module stands for what is in it."""
    path = tmp_path / "fake.ckpt"
    path.write_bytes(b"weights")
    return str(path)
