"""Pluggable samplers: each is one config class, one file here, and one line of ``SAMPLERS``."""

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from configs.sampler_cfg import (
    DDIMCfg,
    DDPMCfg,
    FlowCfg,
    IMFCfg,
    LagrangianCfg,
    MeanFlowCfg,
    SamplerCfg,
    ShortcutCfg,
    SoFlowCfg,
    SplitCfg,
)
from samplers.base import Sampler, Targets, When
from samplers.ddim import DDIM
from samplers.ddpm import DDPM
from samplers.flow import FlowMatching
from samplers.guidance import Guided
from samplers.lagrangian import Lagrangian
from samplers.meanflow import IMF, MeanFlow
from samplers.net import Cond, Net
from samplers.shortcut import Shortcut
from samplers.soflow import SoFlow
from samplers.split import Split

__all__ = [
    "SAMPLERS", "Cond", "Guided", "Net", "Sampler", "SamplerMismatch", "Targets", "When", "build_sampler",
    "sampler_for",
]

SAMPLERS: dict[type[SamplerCfg], type[Sampler]] = {
    ShortcutCfg: Shortcut,
    FlowCfg: FlowMatching,
    SplitCfg: Split,
    SoFlowCfg: SoFlow,
    MeanFlowCfg: MeanFlow,
    IMFCfg: IMF,
    LagrangianCfg: Lagrangian,
    DDPMCfg: DDPM,
    DDIMCfg: DDIM,
}
FREE_AFTER_TRAINING = {"steps", "heun", "eta"}


class SamplerMismatch(ValueError):
    """A sampler that asks what the network has never learned to answer."""


def build_sampler(cfg: SamplerCfg) -> Sampler:
    """The sampler that belongs to a config.

    Raises:
        TypeError: the type of ``cfg`` is not registered.
    """
    if type(cfg) not in SAMPLERS:
        known = _listed(cfg_type.__name__ for cfg_type in SAMPLERS)
        raise TypeError(f"{type(cfg).__name__} has no sampler, but it must be one of {known}")
    return SAMPLERS[type(cfg)](cfg)


def sampler_for(trained: SamplerCfg, name: str | None = None, **overrides: Any) -> Sampler:
    """The sampler ``name`` for a network that was trained under ``trained``.

    Whatever training has fixed (schedule, prediction, grid ...) is carried over.

    Args:
        trained: the sampler config in the network's checkpoint.
        name: such as "ddim"; ``None`` is the sampler of the training.
        overrides: settings that generation is free to choose, such as ``steps`` or ``eta``.

    Raises:
        SamplerMismatch: the network cannot answer what this sampler asks.
        ValueError: an unknown name, or a setting that training has fixed.
    """
    by_name = {sampler.name: (cfg_type, sampler) for cfg_type, sampler in SAMPLERS.items()}
    trained_name = SAMPLERS[type(trained)].name
    if name is not None and name not in by_name:
        raise ValueError(f"sampler is {name!r}, but it must be one of {_listed(by_name)}")
    cfg_type, sampler = by_name[name or trained_name]
    if not isinstance(trained, sampler.drives):
        fitting = [other.name for other in SAMPLERS.values() if isinstance(trained, other.drives)]
        raise SamplerMismatch(
            f"A network trained with {trained_name} cannot be driven by {sampler.name}: it answers "
            f"{SAMPLERS[type(trained)].answers}, but {sampler.name} asks for {sampler.answers}; "
            f"use {' or '.join(fitting)}."
        )
    names = {field.name for field in fields(cfg_type)}
    for key in overrides.keys() - (names & FREE_AFTER_TRAINING):
        raise ValueError(
            f"{key} cannot be chosen for {sampler.name} after training; only {_listed(names & FREE_AFTER_TRAINING)} can"
        )
    carried = {key: getattr(trained, key) for key in names if hasattr(trained, key)}
    if cfg_type is not type(trained):  # the number of steps that suits one sampler does not suit the other
        carried["steps"] = min(cfg_type.steps, getattr(trained, "timesteps", cfg_type.steps))
    return sampler.driving(trained, cfg_type(**{**carried, **overrides}))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
