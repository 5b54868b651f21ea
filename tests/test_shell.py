"""The shell commands: the environment that they make, the folder that they work in, and what they refuse."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMANDS = sorted(path.stem for path in ROOT.glob("scripts/*.sh") if path.stem not in ("root", "setup"))
PYTHON = """#!/bin/sh
echo "$0 $*" >>calls
if [ "$2" = venv ]; then mkdir -p .venv/bin && cp "$0" .venv/bin/python; fi
"""
BROKEN = "#!/bin/sh\nexit 1\n"
NEW_VENV = "/python -m venv .venv\n"
WITHOUT_PIP = """#!/bin/sh
echo "$0 $*" >>calls
[ "$2" != ensurepip ] || touch pip
[ "$2" != pip ] || [ -f pip ]
"""


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the project's shell commands, and nothing to install."""
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copytree(ROOT / "scripts", folder / "scripts", ignore=lambda _, names: [n for n in names if ".sh" not in n])
    (folder / "requirements.txt").touch()
    return folder


def shell(command: str, *words: str, project: Path, cwd: Path | None = None, **env: str) -> tuple[int, str]:
    """Exit code and stderr."""
    done = subprocess.run(["bash", f"{project}/scripts/{command}.sh", *words], cwd=cwd or project, env=os.environ | env,
                          capture_output=True, text=True, check=False, timeout=60)  # fmt: skip
    return done.returncode, done.stderr


def set_up_already(project: Path) -> None:
    program(project / "scripts/setup.sh", "")
    for name in ("python", "ruff", "mypy"):
        program(project / ".venv/bin" / name, "#!/bin/sh\n")


TORCHRUN = "-m torch.distributed.run --nproc-per-node"


def test_a_launch_says_who_meets_where_and_leaves_options_to_the_command(project: Path) -> None:
    set_up_already(project)
    program(project / ".venv/bin/python", '#!/bin/sh\necho "$*" >>calls\n')
    assert shell("launch", "8", "generate_masks", "--num", "3", project=project)[0] == 0
    machines = {"NODES": "3", "NODE": "1", "HEAD": "h", "PORT": "5"}
    assert shell("launch", "2", "train_stage_2", "icons", project=project, **machines)[0] == 0
    assert (project / "calls").read_text().splitlines() == [
        f"{TORCHRUN} 8 --standalone -m -- scripts.generate_masks --num 3",
        f"{TORCHRUN} 2 --nnodes 3 --node-rank 1 --master-addr h --master-port 5 -m -- scripts.train_stage_2 icons",
    ]


def test_a_job_of_slurm_launches_on_each_machine_with_its_number(project: Path, tmp_path: Path) -> None:
    set_up_already(project)
    program(project / ".venv/bin/python", '#!/bin/sh\necho "$*" >>calls\n')
    shutil.copy(ROOT / "scripts/launch.slurm", project / "scripts")
    program(tmp_path / "bin/scontrol", "#!/bin/sh\nprintf 'first\\nsecond\\n'\n")
    program(tmp_path / "bin/srun", '#!/bin/sh\nshift\nexec "$@"\n')
    job = {
        "SLURM_SUBMIT_DIR": str(project), "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "both",
        "SLURM_NODEID": "1", "SLURM_JOB_ID": "20007", "SLURM_GPUS_ON_NODE": "4",
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
    }  # fmt: skip
    words = ["bash", str(project / "scripts/launch.slurm"), "train_stage_2", "icons", "--train.resume", "auto"]
    subprocess.run(words, env=os.environ | job, check=True, timeout=60)
    assert (project / "calls").read_text() == (
        f"{TORCHRUN} 4 --nnodes 2 --node-rank 1 --master-addr first --master-port 20007 -m -- "
        "scripts.train_stage_2 icons --train.resume auto\n"
    )


@pytest.mark.parametrize("found", ["no folder", "a python that does not run"])
def test_an_environment_that_is_not_whole_is_made_anew(project: Path, found: str) -> None:
    if found != "no folder":
        program(project / ".venv/bin/python", BROKEN)
    python = program(project.parent / "python", PYTHON)
    assert shell("setup", project=project, PYTHON=str(python))[0] == 0
    calls = (project / "calls").read_text()
    assert NEW_VENV in calls
    install, _, compile_it = calls.splitlines()[-3:]
    assert install.startswith(".venv/bin/python -m pip install ")
    assert compile_it.startswith(".venv/bin/python -m compileall ")
    assert shell("setup", project=project, PYTHON=str(python)) == (0, "")
    assert "so PIP_ARGS changes nothing" in shell("setup", project=project, PIP_ARGS="--extra-index-url x")[1]
    assert (project / "calls").read_text() == calls


@pytest.mark.parametrize(("words", "installs"), [((), True), (("--port", "1"), True), (("--help",), False)])
def test_the_pages_help_installs_no_page(project: Path, words: tuple[str, ...], installs: bool) -> None:
    set_up_already(project)
    program(project / "scripts/setup.sh", 'echo "setup $*" >>calls\n')
    assert shell("demo", *words, project=project)[0] == 0
    assert ("setup --demo" in (project / "calls").read_text()) == installs


def test_an_environment_without_pip_gets_it_and_loses_nothing(project: Path) -> None:
    program(project / ".venv/bin/python", WITHOUT_PIP)
    (project / ".venv/mine").touch()
    assert shell("setup", project=project, PYTHON="absent")[0] == 0
    calls = (project / "calls").read_text().splitlines()
    assert [line.split()[2] for line in calls if " -m " in line] == ["pip", "ensurepip", "pip", "compileall"]
    assert (project / ".venv/mine").exists()


def test_an_environment_for_a_python_that_is_elsewhere_is_left_as_it_is(project: Path) -> None:
    (project / ".venv").mkdir()
    (project / ".venv/.installed").write_text("of an earlier version")
    code, said = shell("setup", project=project)
    assert code == 2
    assert "made for a Python that is not here" in said
    assert [path.name for path in (project / ".venv").iterdir()] == [".installed"]


@pytest.mark.parametrize("other", ["too-old", "absent"])
def test_a_whole_environment_is_kept_whatever_other_python_there_is(project: Path, other: str) -> None:
    program(project / ".venv/bin/python", PYTHON)
    program(project.parent / "too-old", BROKEN)
    assert shell("setup", project=project, PYTHON=str(project.parent / other))[0] == 0
    assert NEW_VENV not in (project / "calls").read_text()
    assert (project / ".venv/.installed").exists()


def test_a_python_that_is_absent_or_too_old_is_named(project: Path) -> None:
    old = program(project.parent / "old", '#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.1"\n')
    for python, said in (("no-such-python", "there is no no-such-python"), (str(old), "Python 3.9.1 is too old")):
        code, told = shell("setup", project=project, PYTHON=python)
        assert code == 2
        assert told.startswith(f"setup: {said}; ")
        assert told.count("\n") == 1


def test_the_quickstart_ends_where_its_runs_cannot_be_written(project: Path) -> None:
    set_up_already(project)
    tools = program(project.parent / "tools/mkdir", '#!/bin/sh\n[ "$1" = -p ]\n').parent
    (project / "runs/quickstart").mkdir(parents=True)
    code, told = shell("quickstart", project=project, PATH=f"{tools}:{os.environ['PATH']}")
    assert code == 1
    assert told.startswith(f"quickstart: {project}/runs cannot be written; ")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_says_where_paths_begin_unless_it_was_started_there(project: Path, command: str) -> None:
    set_up_already(project)
    words = ["2", "train_stage_1"] if command == "launch" else ["--help"]
    elsewhere, link = project.parent, project.parent / "link"
    link.symlink_to(project)
    note = f"{command}: relative paths begin at the project's folder {project}, not at {elsewhere}\n"
    assert shell(command, *words, project=project, cwd=elsewhere) == (0, note)
    assert shell(command, *words, project=project) == (0, "")
    assert shell(command, *words, project=project, cwd=link) == (0, "")


@pytest.mark.parametrize("words", ["", "8", "train_stage_2 animals", "0 train_stage_2", "8 evaluate", "8 quickstart"])
def test_only_commands_that_share_their_work_are_launched_in_several_processes(project: Path, words: str) -> None:
    set_up_already(project)
    code, told = shell("launch", *words.split(), project=project)
    assert code == 2
    assert told.startswith(f"launch: '{words}' does not begin with a number of processes and train_stage_1, ")
    assert told.count("\n") == 1
    for command in ("train_stage_1", "train_stage_2", "generate_masks"):
        assert shell("launch", "8", command, project=project) == (0, "")
