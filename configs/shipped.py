"""Models that come with the project, by name."""

from pathlib import Path

from configs.checks import ConfigError
from configs.whole_file import PARTS_ABOUT

FOLDER = Path(__file__).parents[1] / "models" / "shipped"
SHIPPED = {name: FOLDER / f"{name}.safetensors" for name in ("icons", "icons256", "animals", "geometry")}


def checkpoint_path(name: str) -> Path:
    """The file that a checkpoint option names: one of the project's own models, or a path.

    Raises:
        ConfigError: a name of a model whose file is missing.
    """
    found = SHIPPED.get(name)
    yours = Path(name).is_file() or (Path(name) / PARTS_ABOUT).is_file()  # or a checkpoint in parts (models/parts.py)
    if found is None or yours:
        return Path(name).expanduser()
    if not found.is_file():
        raise ConfigError(f"the model {name!r} should lie in {found}, but it is not there: get the whole project again")
    return found
