"""Look at a folder of masks before training: ``python -m scripts.check_data PATH``.

Lists every bad file with its reason, then a summary. Exits with 1 if training would fail, with 2 for a wrong option.
"""

import warnings

from configs.check_data_cfg import CheckDataCfg
from configs.cli import parse
from scripts.run import refuse_kindly


def main(argv: list[str] | None = None) -> None:
    about = "Look at a folder of masks before training."
    cfg: CheckDataCfg = parse(CheckDataCfg, argv, "python -m scripts.check_data", about)
    with refuse_kindly("check_data"):
        if not check(cfg):
            raise SystemExit(1)


def check(cfg: CheckDataCfg, option: str = "PATH") -> bool:
    """Print what there is to say; answers whether a training can begin. ``option`` is what has named the folder.

    Raises:
        DataError: no such folder, or no image in it.
    """
    from data.check import summary
    from data.folder import read_folder
    from data.masks import DataError
    from data.sources import split
    from models.text import TextEncoder

    folders = [(cfg.path, option), *([(cfg.test, "--test")] if cfg.test.strip() else [])]
    read = [(path, read_folder(path, named, cfg.default_prompt, cfg.data)) for path, named in folders]
    count_tokens = TextEncoder(cfg.text).count_tokens
    for path, found in read:
        print(f"{path}:")
        for title, entries in (
            ("bad captions", found.bad_captions), ("bad images", found.bad_images), ("warnings", found.notes)
        ):
            if entries:
                print(f"  {title}", *entries, sep="\n    ")
        for title, text in summary(found, count_tokens, cfg.max_tokens).items():
            print(f"  {title:12}{text}")
    try:
        with warnings.catch_warnings(record=True):  # all of them are listed above, but copies of test masks
            train, *test = [found.usable(cfg.max_bad) for _, found in read]
        train, held_out = split(train, test[0] if test else None, cfg.data.val_fraction)
    except DataError as reason:
        print(f"training would fail: {reason}")
        return False
    print(f"training would begin with {len(train):,} masks, and {len(held_out):,} held out")
    return True


if __name__ == "__main__":
    main()
