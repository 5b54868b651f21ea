"""Show a model on a page: ``bash scripts/demo.sh``."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from configs.checks import ConfigError
from configs.cli import as_text, parse
from configs.demo_cfg import DemoCfg
from configs.shipped import checkpoint_path
from scripts.run import refuse_kindly


def main(argv: list[str] | None = None) -> None:
    cfg: DemoCfg = parse(DemoCfg, argv, "scripts/demo.sh", "Open a page on which masks are drawn from prompts.")
    with refuse_kindly("demo"), private_folder():
        page, launch = prepare(cfg)
        print(f"{as_text(cfg)}\npage: http://{cfg.host}:{cfg.port} (Ctrl-C ends it)", flush=True)
        try:
            page.launch(**launch)
        except OSError as reason:
            raise ConfigError(f"the page cannot listen on {cfg.host}:{cfg.port} ({reason}): "
                              "name another --port") from None  # fmt: skip
        finally:
            page.close(verbose=False)  # its queue, too: threads that still draw would keep this process alive, or abort


@contextmanager
def private_folder() -> Iterator[None]:
    """Let Gradio keep drawings and downloads in a folder that only this user can read, removed in the end.

    SIGTERM ends the block in order, too. Enter it before Gradio is imported, which reads GRADIO_TEMP_DIR then; where
    that variable names a folder, it is taken, and left as it is.
    """
    earlier = signal.signal(signal.SIGTERM, end)
    folder = "" if os.environ.get("GRADIO_TEMP_DIR") else tempfile.mkdtemp(prefix="masks-page-")
    try:
        if folder:
            os.environ["GRADIO_TEMP_DIR"] = folder
        yield
    finally:
        if folder:
            del os.environ["GRADIO_TEMP_DIR"]
            shutil.rmtree(folder, ignore_errors=True)
        signal.signal(signal.SIGTERM, earlier)


def end(number: int, frame: object) -> None:
    """A handler of signals: leave through every ``finally``; a second signal ends the process at once."""
    signal.signal(number, signal.SIG_DFL)
    raise SystemExit(128 + number)


def prepare(cfg: DemoCfg) -> tuple[Any, dict[str, Any]]:
    """The page around a loaded model, and how to launch it.

    Raises:
        ModuleNotFoundError: Gradio is not installed.
        CheckpointError, ConfigError: no such model.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # or its import asks the network for newer versions
    try:
        import gradio
    except ModuleNotFoundError:
        raise ModuleNotFoundError("the page needs Gradio, which is not installed: start it with bash scripts/demo.sh, "
                                  "or run .venv/bin/python -m pip install -r scripts/demo-requirements.txt"
                                  ) from None  # fmt: skip
    from scripts.demo_page import CSS, build_page, theme
    from scripts.mask_model import load_mask_model
    from scripts.seeded import choose_device

    module = load_mask_model(checkpoint_path(cfg.checkpoint), choose_device(cfg.accelerator))
    page = build_page(module, cfg).queue(max_size=cfg.queue, default_concurrency_limit=1, api_open=False)
    return page, {
        "server_name": cfg.host, "server_port": cfg.port, "share": cfg.share, "inbrowser": cfg.browser,
        "theme": theme(gradio), "css": CSS, "footer_links": [], "quiet": True, "ssr_mode": False,
        "max_file_size": "5mb", "enable_monitoring": False,
    }  # fmt: skip


if __name__ == "__main__":
    main()
