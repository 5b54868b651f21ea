"""The import rule of the project: imports go one way, and help needs no torch."""

import ast
import os
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


def passes(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the code in a Python of its own, which must end well."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | env
    )
    assert done.returncode == 0, done.stderr
    return done


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
    "quickstart", "demo", "report", "export", "import_autoencoder", "make_shards", "bakeoff", "figures", "scaling",
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
    done = passes(code)
    assert "--" in done.stdout
    assert time.monotonic() - begin < 20  # a hang, not a speed: benchmarks measure speed


def test_a_training_starts_without_the_metrics_of_torchmetrics_which_are_there_when_asked_for() -> None:
    code = (
        "import sys\n"
        "from scripts.run import refuse_kindly\n"
        "with refuse_kindly('train'):\n"
        "    import trainer\n"
        "    heavy = {'scipy.stats', 'scipy.signal', 'transformers', 'torchmetrics.functional'}\n"
        "    assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "    import torchmetrics\n"
        "    from lightning.pytorch.utilities.types import Metric\n"
        "    assert torchmetrics.Metric is Metric\n"
        "    from torchmetrics import MeanMetric, functional\n"
        "    assert issubclass(MeanMetric, Metric) and torchmetrics.Metric is Metric\n"
        "    assert callable(functional.image.structural_similarity_index_measure)\n"
        "    assert torchmetrics.__version__ and not hasattr(torchmetrics, 'nothing')\n"
    )
    passes(code)


def test_a_torchmetrics_that_is_made_otherwise_is_imported_as_ever(tmp_path: Path) -> None:
    package = tmp_path / "torchmetrics"
    package.mkdir()
    (package / "__init__.py").write_text("class Metric: ...\nthere = 7\n")  # and no submodules
    about = tmp_path / "torchmetrics-9.9.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: torchmetrics\nVersion: 9.9\n")
    code = (
        "from scripts.quick_imports import spare_torchmetrics\n"
        "spare_torchmetrics()\n"
        "import torchmetrics\n"
        "assert torchmetrics.__version__ == '9.9'\n"
        "from torchmetrics import Metric\n"
        "assert torchmetrics.there == 7 and Metric.__module__ == 'torchmetrics'\n"
    )
    passes(code, PYTHONPATH=str(tmp_path))


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
    passes(code)
