"""The import rule of the project: imports go one way, and help needs no torch."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {  # package -> packages of ours that it may import
    "configs": set(),
    "data": {"configs", "metrics"},  # for captions of geometry
    "models": {"configs"},
    "samplers": {"configs"},
    "metrics": {"configs"},
    "autoencoder": {"configs", "models"},
    "diffusion": {"configs", "models", "samplers", "autoencoder", "metrics"},  # for what captions of geometry say
    "trainer": {"configs", "models", "samplers", "autoencoder", "diffusion", "data", "metrics"},
    "scripts": {"configs", "models", "samplers", "autoencoder", "diffusion", "data", "metrics", "trainer"},
}
LIGHTNING = {
    "autoencoder.py", "diffusion.py", "trainer.py", "data/module.py", "metrics/callbacks.py", "metrics/progress.py",
    "metrics/quality.py", "metrics/trackers.py", "models/saving.py", "models/sharding.py", "models/steps.py",
    "models/stopping.py",
}  # fmt: skip


def sources() -> list[Path]:
    return sorted(p for name in ALLOWED for p in [*ROOT.glob(f"{name}/**/*.py"), *ROOT.glob(f"{name}.py")])


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0].removesuffix(".py")
    ours = imported(path) & set(ALLOWED)
    assert ours <= ALLOWED[package] | {package}
    if str(path.relative_to(ROOT)) not in LIGHTNING:
        assert not imported(path) & {"lightning", "pytorch_lightning"}


def test_configs_import_only_the_standard_library_and_tyro() -> None:
    for path in ROOT.glob("configs/*.py"):
        assert imported(path) <= set(sys.stdlib_module_names) | {"tyro", "configs"}, path


@pytest.mark.parametrize("command", [
    "train_stage_1", "train_stage_2", "generate_masks", "evaluate", "benchmark", "check_data", "caption_masks",
    "quickstart", "demo", "report", "export", "import_autoencoder", "make_shards",
])
def test_help_shows_fields_without_importing_torch(command: str) -> None:
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['{command}', '--help']\n"
        "try:\n    runpy.run_module('scripts." + command + "', run_name='__main__')\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "assert not {'torch', 'lightning', 'numpy'} & set(sys.modules), 'heavy import'\n"
    )
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--" in done.stdout
    assert time.monotonic() - begin < 20  # a hang, not a speed: benchmarks measure speed


def test_generating_needs_neither_lightning_nor_transformers() -> None:
    """Importing them takes longer than drawing a mask."""
    code = (
        "import sys\n"
        "import scripts.edits, scripts.generate_masks, scripts.mask_files, scripts.ranks\n"
        "from configs.shipped import checkpoint_path\n"
        "from scripts.mask_model import load_mask_model\n"
        "from scripts.seeded import recipes\n"
        "load_mask_model(checkpoint_path('animals'))\n"
        "heavy = {'lightning', 'transformers', 'torchmetrics', 'torchvision', 'scipy', 'torch._dynamo'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
