"""Importing, training and generating ask no network: with look-ups of names and connections switched off, all works."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OFF = """
import socket, sys
def refuse(*args, **kwargs):
    raise OSError(f"the network is off: {args[:2]}")
def only_local(connect):
    return lambda self, address: connect(self, address) if self.family == socket.AF_UNIX else refuse(address)
for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "create_connection"):
    setattr(socket, name, refuse)
class Socket(socket.socket):
    connect = only_local(socket.socket.connect)
    connect_ex = only_local(socket.socket.connect_ex)
socket.socket = Socket
"""
RUN = """
folder = sys.argv[1]
from scripts.train_stage_1 import main as stage_1
from scripts.train_stage_2 import main as stage_2
from scripts.generate_masks import main as generate
for main in (stage_1, stage_2, generate):
    try:
        main(["--help"])
    except SystemExit as end:
        assert end.code == 0
tiny = ["animals-tiny", "--data.limit", "12", "--data.batch-size", "4", "--data.val-fraction", "0.001",
        "--data.image-size", "16", "--train.max-steps", "2", "--train.val-every", "2", "--train.accelerator", "cpu",
        "--train.precision", "fp32", "--train.runs", folder]
stage_1([*tiny, "--autoencoder.width", "8", "--autoencoder.multipliers", "1", "1", "2",
         "--train.run-dir", f"{folder}/1"])
stage_2([*tiny, "--backbone.width", "32", "--backbone.blocks", "1", "--text.width", "16", "--train.previews", "False",
         "--train.quality", "0", "--autoencoder", f"{folder}/1/last.ckpt", "--train.run-dir", f"{folder}/2"])
generate(["--checkpoint", f"{folder}/2/last.ckpt", "--prompt", "a cat", "--num", "1", "--out", f"{folder}/masks"])
"""


def python(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *args], cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_switch_is_off() -> None:
    for code in ("socket.getaddrinfo('localhost', 80)", "socket.socket().connect(('127.0.0.1', 9))"):
        assert "the network is off" in python(OFF + code).stderr


@pytest.mark.slow
def test_both_stages_train_and_draw_without_a_network(tmp_path: Path) -> None:
    done = python(OFF + RUN, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "masks").glob("*.png"))
