"""Trackers by name: what is missing is named, what fails harms no training, and each keeps numbers and pictures."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conftest import TINY_TRAIN
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from configs.checks import ConfigError
from configs.cli import from_dict, parse, to_dict
from configs.presets import STAGE_1
from configs.trainer_cfg import TrainerCfg
from metrics import trackers
from metrics.trackers import build_loggers, close, known_ids, show_picture

PICTURE = torch.rand(3, 8, 8)


def without(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed (it is optional)")


def test_trackers_are_named_on_the_command_line_and_kept_in_the_config() -> None:
    cfg = parse(STAGE_1["animals"](), ["--train.trackers", "tensorboard", "mlflow"], "x")
    assert cfg.train.trackers == ("tensorboard", "mlflow")
    assert from_dict(TrainerCfg, json.loads(json.dumps(to_dict(cfg.train)))) == cfg.train
    with pytest.raises(ConfigError, match=r"train\.trackers is 'neptune'"):
        replace(TINY_TRAIN, trackers=("neptune",))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="different names"):
        replace(TINY_TRAIN, trackers=("wandb", "wandb"))


def test_csv_is_always_there_and_tensorboard_unless_it_is_left_out(tmp_path: Path) -> None:
    assert [type(own) for own in build_loggers(TINY_TRAIN, tmp_path)] == [TensorBoardLogger, CSVLogger]
    (tmp_path / "csv").mkdir()
    (only,) = build_loggers(replace(TINY_TRAIN, trackers=()), tmp_path)
    assert isinstance(only, CSVLogger)
    assert Path(only.log_dir) == tmp_path / "csv-2"


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_is_named_with_its_command(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda package: None)
    with pytest.raises(ModuleNotFoundError, match=f'{name}.*not installed: run .*pip install "{name}>='):
        build_loggers(replace(TINY_TRAIN, trackers=(name,)), tmp_path)  # type: ignore[arg-type]


def test_a_tracker_that_fails_gets_one_warning_and_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fail(*args: object) -> None:
        calls.append(args)
        raise OSError("the server is gone")

    logger = TensorBoardLogger(tmp_path)
    monkeypatch.setattr(logger, "log_metrics", fail)
    logger = trackers.harmless(logger, "mlflow")  # type: ignore[assignment]
    with pytest.warns(UserWarning, match="mlflow failed and gets nothing more of this training .the server is gone"):
        logger.log_metrics({"loss": 1.0}, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logger.log_metrics({"loss": 1.0}, 2)
        show_picture([logger], "samples", PICTURE, 2)
        logger.finalize("success")
    assert len(calls) == 1


@without("wandb")
@pytest.mark.slow
def test_wandb_writes_offline_what_can_be_uploaded_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    for folder in (tmp_path / "a", tmp_path / "b"):  # two trainings of one process
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(to_dict(TINY_TRAIN)))
        loggers = build_loggers(replace(TINY_TRAIN, trackers=("wandb",)), folder)
        loggers[0].log_metrics({"loss": 0.5}, 1)
        show_picture(loggers, "samples/1_steps", PICTURE, 1)
        loggers[0].finalize("success")
        close(loggers)
        (run,) = (folder / "wandb").glob("offline-run-*")
        assert run.name.endswith(known_ids(folder)["wandb"])
        assert next(run.glob("*.wandb")).stat().st_size > 0
        assert len(list(run.glob("files/media/images/samples/*.png"))) == 1


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
                assert answer.status == 200
                return
        except OSError:
            assert process.poll() is None, "the server has ended"
            time.sleep(0.2)
    raise TimeoutError("the server did not start")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A real MLflow server on loopback, with an SQLite store."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{tmp_path / 'store.db'}", "--artifacts-destination", str(tmp_path / "files"),
    ]  # fmt: skip
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path, start_new_session=True)
    try:
        wait_for(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


@without("mlflow")
@pytest.mark.slow
def test_mlflow_server_gets_config_numbers_and_pictures_and_a_resume_goes_on_there(
    server: str, tmp_path: Path
) -> None:
    from mlflow.tracking import MlflowClient

    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(to_dict(TINY_TRAIN)))
    for step in (1, 2):  # the second time as a resume would
        loggers = build_loggers(replace(TINY_TRAIN, trackers=("mlflow",), mlflow_uri=server), folder)
        loggers[0].log_metrics({"train/flow": 1.0 / step}, step)
        show_picture(loggers, "samples/1_steps", PICTURE, step)
        loggers[0].finalize("success")
    client = MlflowClient(server)
    run = known_ids(folder)["mlflow"]
    told = client.get_run(run)
    assert told.info.run_name == "run"
    assert told.info.status == "FINISHED"
    assert told.data.params["max_steps"] == str(TINY_TRAIN.max_steps)
    assert [(m.step, m.value) for m in client.get_metric_history(run, "train/flow")] == [(1, 1.0), (2, 0.5)]
    pictures = [file.path for file in client.list_artifacts(run, "samples/1_steps")]
    assert [Path(path).name for path in pictures] == ["0000001.png", "0000002.png"]


@without("mlflow")
@pytest.mark.slow
def test_mlflow_without_a_server_keeps_everything_in_the_runs_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    cfg = replace(TINY_TRAIN, trackers=("mlflow",), runs=str(tmp_path / "runs"))
    loggers = build_loggers(cfg, folder)
    show_picture(loggers, "samples", PICTURE, 1)
    assert (tmp_path / "runs" / "mlflow.db").is_file()
    assert len(list((tmp_path / "runs" / "mlflow").rglob("0000001.png"))) == 1


@without("mlflow")
def test_an_mlflow_server_that_is_not_there_is_refused_in_one_sentence(tmp_path: Path) -> None:
    cfg = replace(TINY_TRAIN, trackers=("mlflow",), mlflow_uri="http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"mlflow_uri 'http://127\.0\.0\.1:9' cannot be used"):
        build_loggers(cfg, tmp_path)
