"""Where a training logs: CSV files always; beside them TensorBoard, W&B or MLflow by name, loaded only when named."""

import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from configs.checks import ConfigError, first_line
from configs.trainer_cfg import TrainerCfg
from configs.whole_file import write_text

IDS = "trackers.json"  # of the run in each tracker, so that a resumed training goes on there
PACKAGES = {"tensorboard": "tensorboard>=2.20,<3", "wandb": "wandb>=0.20,<1", "mlflow": "mlflow>=3,<4"}


def build_loggers(cfg: TrainerCfg, run_dir: Path) -> list[Logger]:
    """CSV and the trackers of ``cfg``.

    Raises:
        ModuleNotFoundError: see ``require_packages``.
        ConfigError: an MLflow server or store that cannot be reached.
    """
    require_packages(cfg)
    csv, number = "csv", 1
    while (run_dir / csv).exists():  # the logger would remove what a resumed training wrote before
        number += 1
        csv = f"csv-{number}"
    return [*(BUILDERS[name](cfg, run_dir) for name in cfg.trackers), CSVLogger(run_dir, name="", version=csv)]


def tensorboard(cfg: TrainerCfg, run_dir: Path) -> Logger:
    return TensorBoardLogger(run_dir, name="", version="tensorboard")


def wandb(cfg: TrainerCfg, run_dir: Path) -> Logger:
    """Offline unless WANDB_MODE is "online"; ``wandb sync`` uploads what was written."""
    online = os.environ.get("WANDB_MODE", "offline") == "online"
    run = known_ids(run_dir).get("wandb") or os.urandom(4).hex()
    logger = WandbLogger(
        name=run_dir.name, project=cfg.project, save_dir=run_dir, offline=not online, id=run
    )
    return begun(logger, run_dir, "wandb", lambda: run)


def mlflow(cfg: TrainerCfg, run_dir: Path) -> Logger:
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # of 7, which are minutes
    runs = Path(cfg.runs).resolve()
    uri = cfg.mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    files = None if uri else (runs / "mlflow").as_uri()
    if not uri:
        runs.mkdir(parents=True, exist_ok=True)
        uri = f"sqlite:///{runs / 'mlflow.db'}"
    logger = MLFlowLogger(
        cfg.project, run_name=run_dir.name, tracking_uri=uri, artifact_location=files,
        run_id=known_ids(run_dir).get("mlflow"),
    )
    try:
        return begun(logger, run_dir, "mlflow", lambda: logger.run_id)
    except Exception as reason:  # of SQLAlchemy, requests, MLflow ...
        why = first_line(reason)
        raise ConfigError(f"train.mlflow_uri {uri!r} cannot be used ({why}): start it, or name another") from None


BUILDERS: dict[str, Callable[[TrainerCfg, Path], Logger]] = {
    "tensorboard": tensorboard, "wandb": wandb, "mlflow": mlflow,
}  # fmt: skip


def require_packages(cfg: TrainerCfg) -> None:
    """Raise ModuleNotFoundError for a tracker that is not installed, with the command that installs it."""
    for name in cfg.trackers:
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"train.trackers names {name!r}, which is not installed: "
                                      f'run .venv/bin/python -m pip install "{PACKAGES[name]}"')  # fmt: skip


def known_ids(run_dir: Path) -> dict[str, str]:
    path = run_dir / IDS
    return dict(json.loads(path.read_text())) if path.exists() else {}


def begun(logger: Logger, run_dir: Path, name: str, run: Callable[[], str | None]) -> Logger:
    """Start the run on the first process, tell it the config, and keep its id; from here on it can do no harm."""

    @rank_zero_only
    def begin() -> None:
        known = known_ids(run_dir)
        if name not in known and (run_dir / "config.json").exists():
            logger.log_hyperparams(json.loads((run_dir / "config.json").read_text()))
        write_text(run_dir / IDS, json.dumps(known | {name: run()}) + "\n")

    begin()
    return harmless(logger, name)


def harmless(logger: Logger, name: str) -> Logger:
    """``logger``, whose first failure is one warning, after which it is left alone: the training goes on."""
    lost: list[Exception] = []

    def guarded(method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            if lost:
                return None
            try:
                return method(*args, **kwargs)
            except Exception as reason:
                lost.append(reason)
                why = first_line(reason)
                warnings.warn(f"{name} failed and gets nothing more of this training ({why})", stacklevel=2)
                return None

        return call

    for method in ("log_metrics", "save", "finalize", "after_save_checkpoint"):
        setattr(logger, method, guarded(getattr(logger, method)))
    logger.show = guarded(PICTURES[type(logger)])  # type: ignore[attr-defined]  # ours, see below
    return logger


PICTURES: Mapping[type, Callable[[Any, str, Tensor, int], object]] = {
    TensorBoardLogger: lambda logger, tag, picture, step: logger.experiment.add_image(tag, picture, step),
    WandbLogger: lambda logger, tag, picture, step: logger.log_image(tag, [to_pil_image(picture)], step),
    MLFlowLogger: lambda logger, tag, picture, step: logger.experiment.log_image(
        logger.run_id, to_pil_image(picture), f"{tag}/{step:07d}.png"
    ),
}


def show_picture(loggers: Sequence[Logger], tag: str, picture: Tensor, step: int) -> None:
    """Hand a picture [C,H,W] in [0,1] to every logger that takes some; on the first process only."""
    for logger in loggers:
        if type(logger) in PICTURES:
            show = getattr(logger, "show", PICTURES[type(logger)])
            show(logger, tag, picture, step)


@rank_zero_only
def close(loggers: Sequence[Logger]) -> None:
    """End the run of W&B, so that a second training of this process gets its own."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()
