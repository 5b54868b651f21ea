"""Run by test_generate_shared.py, once per process of a launch: generation with a fake module.

Usage: python -m tests.generate_worker CHECKPOINT OUT
"""

import sys
from pathlib import Path

from generation import FakeModule, cfg_for

from configs.sampler_cfg import ShortcutCfg
from scripts.generate_masks import generate_to_folder
from scripts.ranks import joined
from scripts.run import refuse_kindly

if __name__ == "__main__":
    with refuse_kindly("worker"), joined() as ranks:
        generate_to_folder(FakeModule(ShortcutCfg()), cfg_for(sys.argv[1], Path(sys.argv[2]), num=7), ranks)
