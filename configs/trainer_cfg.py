"""Steps, precision, devices, strategy, optimiser, logging and checkpoints: shared by both stages."""

from dataclasses import dataclass
from typing import Literal

from configs.checks import fraction, non_negative, one_of, positive, require

PRECISIONS = ("auto", "fp32", "bf16-mixed", "fp16-mixed")
STRATEGIES = ("auto", "ddp", "fsdp", "hybrid")
TRACKERS = ("tensorboard", "wandb", "mlflow")


@dataclass(frozen=True)
class OptimCfg:
    """AdamW, or Muon beside it, with linear warm-up and a cosine fall."""

    lr: float = 1e-3
    """Peak learning rate."""
    muon_lr: float = 0.0
    """Stage 2: peak learning rate of Muon, which moves the matrices and filters inside the network, on AdamW's scale
    (0: AdamW moves all)."""
    beta1: float = 0.9
    """AdamW's decay of the mean gradient."""
    beta2: float = 0.99
    """AdamW's decay of the squared gradient."""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrices and filters; biases, norms and embeddings have none."""
    warmup_steps: int = 100
    """Steps of the linear rise from zero."""
    final_lr: float = 0.05
    """Learning rate at the last step, as a share of the peak."""
    clip_norm: float = 1.0
    """Largest gradient norm (0: no clipping)."""

    def __post_init__(self) -> None:
        positive("optim.lr", self.lr)
        non_negative("optim.muon_lr", self.muon_lr)
        fraction("optim.beta1", self.beta1, below_one=True)
        fraction("optim.beta2", self.beta2, below_one=True)
        non_negative("optim.weight_decay", self.weight_decay)
        non_negative("optim.warmup_steps", self.warmup_steps)
        fraction("optim.final_lr", self.final_lr)
        non_negative("optim.clip_norm", self.clip_norm)


@dataclass(frozen=True)
class TrainerCfg:
    """How long, on what, and what is kept."""

    max_steps: int = 1000
    """Optimiser steps of the whole training."""
    max_minutes: float = 0.0
    """Stop after this many minutes even if steps are left (0: no limit)."""
    accumulate: int = 1
    """Batches whose gradients are added up for one optimiser step."""
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"
    """What to run on; auto takes a GPU where there is one."""
    devices: int = 0
    """Processes on this machine (0: one on a CPU, all GPUs otherwise); under torchrun, those that it has started."""
    nodes: int = 1
    """Machines; under torchrun, those that it has started."""
    strategy: Literal["auto", "ddp", "fsdp", "hybrid"] = "auto"
    """ddp: a copy of the network in each process; fsdp: weights shared out over all processes (ModelParallelStrategy
    + fully_shard); hybrid: shared out inside each machine, a copy per machine."""
    checkpoint_parts: bool = False
    """fsdp and hybrid: each process writes its share of a checkpoint into a folder; off: one of them writes a file."""
    precision: Literal["auto", "fp32", "bf16-mixed", "fp16-mixed"] = "auto"
    """auto: bf16 where this CPU or GPU is fast at it, else fp32."""
    channels_last: Literal["auto", "on", "off"] = "auto"
    """Memory format of the convolutions; auto takes the faster one, and with several processes on for GPUs only."""
    compile: bool = False
    """torch.compile the networks: a minute or more at the start, faster steps from then on; needs a compiler (a C++ one
    for the CPU, Triton for a GPU). Other rounding, so such a training is not bit by bit one without it."""
    cuda_graphs: bool = False
    """Stage 2 on one GPU: record the networks' work once and start it as a whole from then on, which helps where small
    networks leave the GPU waiting for the processor. Takes memory for each shape of batch: the presets' objective has
    two, the second from where self-consistency begins."""
    seed: int = 0
    """Decides the weights at the start, the order of the data, noise and times."""
    runs: str = "runs"
    """Folder in which each training gets a folder of its own."""
    run_dir: str = ""
    """This training's folder; empty: a new one under runs/, named after the preset."""
    resume: str = "none"
    """none, auto (the furthest checkpoint of run_dir), or the path of a checkpoint."""
    timeout: float = 600.0
    """Seconds that one process waits for the others before it gives up; starting and judging must fit in."""
    skip_nonfinite: int = 0
    """Updates in a row that may be left out because a loss or gradient is no finite number (0: stop at the first)."""
    val_every: int = 250
    """Steps between two validations."""
    log_every: int = 25
    """Steps between two logged points."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    """Where numbers and pictures go, beside CSV files and report.html in the run folder; such as tensorboard mlflow."""
    project: str = "masks"
    """Name of the W&B project or MLflow experiment."""
    mlflow_uri: str = ""
    """MLflow's server or store; empty: MLFLOW_TRACKING_URI, else mlflow.db (SQLite) in the runs folder."""
    previews: bool = True
    """Draw pictures at each validation."""
    quality: int = 256
    """Stage 2: masks that are judged in 1, 4 and 32 steps at each validation (0: none; best.ckpt goes by the loss)."""

    def __post_init__(self) -> None:
        positive("train.max_steps", self.max_steps)
        non_negative("train.max_minutes", self.max_minutes)
        for name in ("accumulate", "nodes", "val_every", "log_every"):
            positive(f"train.{name}", getattr(self, name))
        non_negative("train.devices", self.devices)
        positive("train.timeout", self.timeout)
        non_negative("train.skip_nonfinite", self.skip_nonfinite)
        require(self.quality == 0 or self.quality >= 8, "train.quality", self.quality, "0 (none) or at least 8")
        one_of("train.strategy", self.strategy, STRATEGIES)
        shared_out = self.strategy in ("fsdp", "hybrid")
        require(shared_out or not self.checkpoint_parts, "train.checkpoint_parts", self.checkpoint_parts,
                f"False where train.strategy is {self.strategy!r}: only fsdp and hybrid share weights out")
        require(not shared_out or self.channels_last != "on", "train.channels_last", self.channels_last,
                "auto or off where weights are shared out (train.strategy fsdp and hybrid)")
        require(not shared_out or not self.compile, "train.compile", self.compile,
                f"False where weights are shared out (train.strategy {self.strategy!r})")
        require(not (self.cuda_graphs and (self.compile or self.accumulate > 1)), "train.cuda_graphs", self.cuda_graphs,
                "False where train.compile is True or train.accumulate above 1")
        one_of("train.precision", self.precision, PRECISIONS)
        for tracker in self.trackers:
            one_of("train.trackers", tracker, TRACKERS)
        require(len(set(self.trackers)) == len(self.trackers), "train.trackers", self.trackers, "different names")
        require(bool(self.project.strip()), "train.project", self.project, "a name")
        require(0 <= self.seed < 2**32, "train.seed", self.seed, "from 0 to 4294967295")
        require(bool(self.resume.strip()), "train.resume", self.resume, "none, auto or the path of a checkpoint")
