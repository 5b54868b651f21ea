"""The container files copy what exists, and leave out nothing that the commands need."""

import re
from pathlib import Path
from shutil import which
from subprocess import run

import pytest

ROOT = Path(__file__).parents[1]
NEEDED = {"configs", "data", "metrics", "models", "samplers", "scripts", "autoencoder.py", "diffusion.py", "trainer.py",
          "requirements.txt", "README.md", "LICENSE"}  # fmt: skip


def test_the_apptainer_definition_copies_every_part_of_the_project() -> None:
    text = (ROOT / "container/masks.def").read_text()
    copied = dict(re.findall(r"^    (\S+) /masks/(\S+)$", text, re.M))
    assert copied == {name: name for name in NEEDED}
    assert all((ROOT / name).exists() for name in copied)
    for part in ("%files", "%post", "%environment", "%runscript", "%test", "%help"):
        assert f"\n{part}\n" in text


def test_the_dockerfile_copies_files_that_exist_and_leaves_out_only_what_is_made_here() -> None:
    text = (ROOT / "container/Dockerfile").read_text()
    for line in re.findall(r"^COPY (\S+) ", text, re.M):
        assert (ROOT / line).exists(), line
    left_out = (ROOT / "container/Dockerfile.dockerignore").read_text().split()
    assert not NEEDED & set(left_out)
    assert {".git", ".venv", "runs"} <= set(left_out)


@pytest.mark.skipif(which("hadolint") is None, reason="hadolint is not installed (it is optional)")
def test_hadolint_has_nothing_to_say() -> None:
    done = run(["hadolint", str(ROOT / "container/Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
