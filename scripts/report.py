"""Write report.html of a training anew, finished or not: ``python -m scripts.report runs/x``."""

from pathlib import Path

from configs.checks import ConfigError
from configs.cli import parse
from configs.report_cfg import ReportCfg
from scripts.run import refuse_kindly


def main(argv: list[str] | None = None) -> None:
    cfg: ReportCfg = parse(ReportCfg, argv, "python -m scripts.report", "Write a training's report.html anew.")
    with refuse_kindly("report"):
        folder = Path(cfg.run).expanduser()
        missing = next((name for name in ("config.json", "run.json") if not (folder / name).is_file()), None)
        if missing:
            raise FileNotFoundError(f"{cfg.run} is no run folder, as it holds no {missing}: name one such as runs/mine")

        from metrics.run_report import write_report

        try:
            written = write_report(folder)
        except OSError:
            raise
        except Exception as reason:  # whatever a cut or foreign file leads to
            what = f"{type(reason).__name__}: {reason}"
            raise ConfigError(f"{cfg.run} holds a file that is damaged, or no training's ({what}): see which of its "
                              "config.json, run.json, evaluation.json and csv cannot be read") from reason  # fmt: skip
        print(f"report: {written}")


if __name__ == "__main__":
    main()
