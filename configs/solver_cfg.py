"""Solvers that are no training objective: what generation may choose for each of them."""

from dataclasses import dataclass

from configs.checks import fraction, positive


@dataclass(frozen=True)
class SolverCfg:
    """What every solver has."""

    steps: int = 16
    """Network steps of a generation that names no number of its own."""

    def __post_init__(self) -> None:
        positive("steps", self.steps)


@dataclass(frozen=True)
class HeunCfg(SolverCfg):
    """Second-order steps of two network calls each, for velocity networks."""


@dataclass(frozen=True)
class DPMppCfg(SolverCfg):
    """Second-order steps of one network call each (DPM-Solver++ 2M), for velocity and for diffusion networks."""


@dataclass(frozen=True)
class RestartCfg(SolverCfg):
    """Jumps to the mask, each from fresh noise, for shortcut networks."""

    steps: int = 2


@dataclass(frozen=True)
class FlowDDPMCfg(SolverCfg):
    """Ancestral steps for velocity networks."""

    steps: int = 128


@dataclass(frozen=True)
class FlowDDIMCfg(SolverCfg):
    """DDIM's steps for velocity networks."""

    steps: int = 32
    eta: float = 0.0
    """0: deterministic; 1: DDPM's noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fraction("eta", self.eta)
