"""Pluggable samplers: each is one config class, one file here, and one line of ``SAMPLERS``.

``SOLVERS`` are no training objectives: they drive networks that a sampler of ``SAMPLERS`` has trained.
"""

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
    TrajectoryCfg,
)
from configs.solver_cfg import DPMppCfg, FlowDDIMCfg, FlowDDPMCfg, HeunCfg, RestartCfg, SolverCfg
from samplers.ancestral import FlowDDIM, FlowDDPM
from samplers.base import Sampler, Targets, When
from samplers.ddim import DDIM
from samplers.ddpm import DDPM
from samplers.dpmpp import DPMpp
from samplers.flow import FlowMatching
from samplers.guidance import Guidance, Guided
from samplers.heun import Heun
from samplers.lagrangian import Lagrangian
from samplers.meanflow import IMF, MeanFlow
from samplers.net import Cond, Net
from samplers.restart import Restart
from samplers.shortcut import Shortcut
from samplers.soflow import SoFlow
from samplers.solver import Solver
from samplers.split import Split
from samplers.trajectory import Trajectory

__all__ = [
    "SAMPLERS", "SOLVERS", "Cond", "Guidance", "Guided", "Net", "Sampler", "SamplerMismatch", "Solver", "Targets",
    "When", "build_sampler", "sampler_for", "solvers_of",
]  # fmt: skip

SAMPLERS: dict[type[SamplerCfg], type[Sampler]] = {
    ShortcutCfg: Shortcut,
    FlowCfg: FlowMatching,
    SplitCfg: Split,
    SoFlowCfg: SoFlow,
    MeanFlowCfg: MeanFlow,
    IMFCfg: IMF,
    LagrangianCfg: Lagrangian,
    TrajectoryCfg: Trajectory,
    DDPMCfg: DDPM,
    DDIMCfg: DDIM,
}
SOLVERS: dict[type[SolverCfg], type[Solver]] = {
    HeunCfg: Heun,
    DPMppCfg: DPMpp,
    FlowDDIMCfg: FlowDDIM,
    FlowDDPMCfg: FlowDDPM,
    RestartCfg: Restart,
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


def solvers_of(trained: SamplerCfg) -> dict[str, tuple[type[Any], type[Solver]]]:
    """Name -> config and class of every sampler that can drive a network trained under ``trained``."""
    return {solver.name: (cfg_type, solver) for cfg_type, solver in _all() if isinstance(trained, solver.drives)}


def sampler_for(trained: SamplerCfg, name: str | None = None, **overrides: Any) -> Solver:
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
    learned, fitting = build_sampler(trained), solvers_of(trained)
    wanted = name or learned.name
    asked = {solver.name: solver.answers for _, solver in _all()}
    if wanted not in asked:
        raise ValueError(f"sampler is {wanted!r}, but it must be one of {_listed(asked)}")
    if wanted not in fitting:
        raise SamplerMismatch(
            f"A network trained with {learned.name} cannot be driven by {wanted}: it answers {learned.answers}, "
            f"but {wanted} asks for {asked[wanted]}; use {' or '.join(fitting)}."
        )
    cfg_type, solver = fitting[wanted]
    names = {field.name for field in fields(cfg_type)}
    for key in overrides.keys() - (names & FREE_AFTER_TRAINING):
        raise ValueError(
            f"{key} cannot be chosen for {wanted} after training; only {_listed(names & FREE_AFTER_TRAINING)} can"
        )
    carried = {key: getattr(trained, key) for key in names if hasattr(trained, key)}
    if cfg_type is not type(trained):  # the number of steps that suits one sampler does not suit the other
        carried["steps"] = min(cfg_type.steps, getattr(trained, "timesteps", cfg_type.steps))
    return solver.driving(learned, cfg_type(**{**carried, **overrides}))


def _all() -> list[tuple[type[Any], type[Solver]]]:
    return [*SAMPLERS.items(), *SOLVERS.items()]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
