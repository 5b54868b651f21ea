"""Train stage 1: ``bash scripts/train_stage_1.sh [PRESET] [--overrides]``."""


from configs.cli import parse_preset
from configs.presets import STAGE_1
from scripts.run import refuse_kindly


def main(argv: list[str] | None = None) -> None:
    name, cfg = parse_preset(STAGE_1, argv, "scripts/train_stage_1.sh", files=True)
    with refuse_kindly("train_stage_1"):
        from trainer import train_stage_1  # torch takes seconds to import: only now

        train_stage_1(cfg, name)


if __name__ == "__main__":
    main()
