"""report.html: made from a run folder alone, whole in one file, and never a reason for a training to fail."""

import json
import re
import shlex
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from configs.cli import to_dict
from configs.presets import STAGE_2
from configs.run_folder import command_line, go_on, parted
from configs.whole_file import file_hash
from metrics.curves import LEFT, RIGHT, WIDTH, line_chart, number, smoothed
from metrics.pictures import keep_picture, kept_pictures
from metrics.run_report import data_words, read_columns, report_if_possible, write_report
from scripts.report import main as report

CSV = """epoch,step,loss,train/flow,train/consistency,train/consistency_d1,train/grad_norm,val/loss,val/flow,\
val/frechet_1,val/frechet_4,val/frechet_real
0,4,2.0,1.5,0.5,,1,,,,,
0,4,,,,,,1.8,1.6,9.0,7.0,0.5
0,9,1.0,0.75,0.25,0.125,1,,,,,
0,9,,,,,,0.9,0.8,3.0,2.0,0.5
"""


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "my <run>"
    (folder / "csv").mkdir(parents=True)
    (folder / "csv" / "metrics.csv").write_text(CSV)
    (folder / "config.json").write_text(json.dumps(to_dict(STAGE_2["animals-tiny"]())))
    (folder / "run.json").write_text(json.dumps({
        "kind": "diffusion", "data": "embedded:animals32 32px 1ch", "status": "complete", "checkpoint": "last.ckpt",
        "started_by": "bash scripts/train_stage_2.sh animals-tiny --train.max-steps 9", "versions": {"torch": "2.14.1"},
    }))  # fmt: skip
    for steps in (1, 4):
        for after in (5, 10):
            keep_picture(folder, f"samples/{steps}_steps", after, torch.rand(3, 20, 40), ["a cat", "a <b>"])
    return folder


class Page(HTMLParser):
    """Tags that were opened and not closed, what is loaded from elsewhere, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.pieces: list[str] = []
        self.feed(text)
        self.text = " ".join(self.pieces)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "html"):
            self.open.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "data")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "data")]

    def handle_endtag(self, tag: str) -> None:
        if tag != "html":
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)


def test_a_report_is_one_whole_page_that_asks_no_network(run_dir: Path) -> None:
    text = write_report(run_dir).read_text()
    page = Page(text)
    assert page.open == []
    assert len(page.sources) == 2 + 4  # the newest of each kind, and the strips over time
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not re.search(r"https?:|url\(|@import|<script", text)
    for told in (
        "my <run>", "complete after 10 of 1,350 steps", "Quality against network steps", "Samples over time", "a <b>",
        "Self-consistency by step length", "condition_drop", "torch",
        f"animals-tiny --train.run-dir '{run_dir}' --train.resume auto --train.max-steps 2700",
        f"scripts.evaluate --checkpoint '{run_dir}/last.ckpt'",
        f"--checkpoint '{run_dir}/last.ckpt' --prompt 'a cat' --num 16",
    ):  # fmt: skip
        assert told in page.text, told


def test_a_training_of_minutes_is_gone_on_with_for_longer_and_one_of_another_program_by_its_config(
    run_dir: Path,
) -> None:
    cfg, run = (json.loads((run_dir / name).read_text()) for name in ("config.json", "run.json"))
    cfg["train"]["max_minutes"] = 7.5
    (run_dir / "config.json").write_text(json.dumps(cfg))
    text = Page(write_report(run_dir).read_text()).text
    assert "--train.resume auto --train.max-steps 2700 --train.max-minutes 15" in text
    (run_dir / "run.json").write_text(json.dumps(run | {"started_by": ""}))
    text = Page(write_report(run_dir).read_text()).text
    config, there = (shlex.quote(str(path)) for path in (run_dir / "config.json", run_dir))
    own = f"bash scripts/train_stage_2.sh {config} --train.run-dir {there} --train.resume auto"
    assert f"{own} --train.max-steps 2700 --train.max-minutes 15" in text
    assert "generate masks" in text


def test_a_stage_1_from_a_config_file_names_no_preset_for_stage_2(run_dir: Path) -> None:
    run = json.loads((run_dir / "run.json").read_text())
    by = "bash scripts/train_stage_1.sh 'runs/a b/config.json' --train.max-steps 9"
    (run_dir / "run.json").write_text(json.dumps(run | {"kind": "autoencoder", "started_by": by}))
    assert "bash scripts/train_stage_2.sh PRESET --autoencoder" in Page(write_report(run_dir).read_text()).text


def test_the_command_for_stage_2_names_the_masks_of_stage_1(run_dir: Path) -> None:
    run = json.loads((run_dir / "run.json").read_text())
    by = "bash scripts/train_stage_1.sh folder --data.source.train 'my masks' --data.batch-size 9 --data.image_size 128"
    (run_dir / "run.json").write_text(json.dumps(run | {"kind": "autoencoder", "started_by": by}))
    wanted = "train_stage_2.sh folder --data.source.train 'my masks' --data.image_size 128 --autoencoder"
    assert wanted in Page(write_report(run_dir).read_text()).text
    by = "bash scripts/train_stage_1.sh data.source:folder --data.source.train x"
    (run_dir / "run.json").write_text(json.dumps(run | {"kind": "autoencoder", "started_by": by}))
    shown = Page(write_report(run_dir).read_text()).text
    assert "train_stage_2.sh PRESET data.source:folder --data.source.train x --autoencoder" in shown
    assert data_words(["data.source:mnist", "--data.source.root", "x", "sampler:flow", "--optim.lr", "1"]) == [
        "data.source:mnist", "--data.source.root", "x",
    ]  # fmt: skip


def started(monkeypatch: pytest.MonkeyPatch, *argv: str, **env: int) -> str:
    """What is recorded of a process that was started with these words in this environment."""
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(sys, "argv", list(argv))
    return command_line()


def test_a_training_of_several_processes_is_recorded_with_its_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ("scripts/train_stage_2.py", "icons", "--train.run-dir", "runs/a b")
    plain, own = "bash scripts/train_stage_2.sh icons", "train_stage_2 icons"
    cases: list[tuple[str, dict[str, int]]] = [
        (plain, {}),
        (plain, {"LOCAL_RANK": 0, "WORLD_SIZE": 2}),  # Lightning has started the other process
        (plain, {"LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "WORLD_SIZE": 1}),
        (f"bash scripts/launch.sh 8 {own}", {"LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 8, "WORLD_SIZE": 8}),
        (f"NODES=3 NODE=0 HEAD=address bash scripts/launch.sh 2 {own}",
         {"LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2, "WORLD_SIZE": 6}),
    ]  # fmt: skip
    for words, env in cases:
        recorded = started(monkeypatch, *argv, **env)
        assert recorded == f"{words} --train.run-dir 'runs/a b'"
        assert parted(recorded)[1] == list(argv[1:])
    assert started(monkeypatch, "scripts/bakeoff.py", LOCAL_WORLD_SIZE=2, WORLD_SIZE=2) == ""


@pytest.mark.parametrize("machines", ["", "NODES=2 NODE=0 HEAD=address "])
def test_what_several_processes_began_is_gone_on_with_in_as_many(run_dir: Path, machines: str) -> None:
    run = json.loads((run_dir / "run.json").read_text())
    launcher, config = f"{machines}bash scripts/launch.sh 2 train_stage_2", shlex.quote(str(run_dir / "config.json"))
    (run_dir / "run.json").write_text(json.dumps(run | {"started_by": f"{launcher} icons --train.run-dir x"}))
    there = shlex.quote(str(run_dir))
    text = Page(write_report(run_dir).read_text()).text
    assert f"{launcher} icons --train.run-dir {there} --train.resume auto --train.max-steps 2700" in text
    assert go_on(run_dir) == f"{launcher} {config} --train.run-dir {there} --train.resume auto"
    by = f"{machines}bash scripts/launch.sh 2 train_stage_1 icons"
    (run_dir / "run.json").write_text(json.dumps(run | {"kind": "autoencoder", "started_by": by}))
    assert "bash scripts/train_stage_2.sh icons --autoencoder" in Page(write_report(run_dir).read_text()).text


def test_words_of_the_page_itself_may_stand_in_what_it_shows(run_dir: Path) -> None:
    folder = run_dir.rename(run_dir.with_name("KIND of ABOUT"))
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(run | {"data": "folder:TITLE CONTENT"}))
    text = write_report(folder).read_text()
    assert "<h1>KIND of ABOUT</h1>" in text
    assert "folder:TITLE CONTENT · complete" in text
    assert text.count("<h2>Commands</h2>") == 1


def test_columns_are_by_training_step_and_what_was_done_again_replaces_the_rest(run_dir: Path) -> None:
    columns = read_columns(run_dir)
    assert columns["loss"] == [(5, 2.0), (10, 1.0)]
    assert columns["train/consistency_d1"] == [(10, 0.125)]
    for number_, first in ((2, 7), (10, 12)):  # resumed after 7 steps, and later after 12
        (run_dir / f"csv-{number_}").mkdir()
        (run_dir / f"csv-{number_}" / "metrics.csv").write_text(f"step,loss\n{first},0.5\n{first + 2},0.25\n")
    assert read_columns(run_dir)["loss"] == [(5, 2.0), (8, 0.5), (10, 0.25), (13, 0.5), (15, 0.25)]


def test_rows_that_a_full_disk_cut_off_or_joined_are_left_out(run_dir: Path) -> None:
    log = run_dir / "csv" / "metrics.csv"
    whole = read_columns(run_dir)
    cut = CSV.splitlines()[3][:10]
    log.write_text(f"{CSV}{cut}{CSV.splitlines()[3]}\nhalf,a,row,,,,,,,,,\n{cut}")
    assert read_columns(run_dir) == whole


def test_no_prompt_of_foreign_data_is_run_by_a_shell_that_the_command_is_pasted_into(run_dir: Path) -> None:
    prompt = "it's $(date) `date` \"!\""
    keep_picture(run_dir, "samples/1_steps", 11, torch.rand(3, 20, 40), ["a\x1bb\nc", prompt])
    assert f"--prompt {shlex.quote(prompt)} --num 16" in Page(write_report(run_dir).read_text()).text


def evaluate(run_dir: Path, **further: str) -> None:
    """Leave an evaluation.json in a run folder."""
    steps = [{"steps": n, "frechet": {"mean": 3.0 / n}, "accuracy": {"mean": 0.9}} for n in (1, 4, 32)]
    (run_dir / "evaluation.json").write_text(json.dumps({
        "steps": steps, "real": {"frechet": {"mean": 0.07}}, "num": 933, "features": "classifier", "sampler": "flow",
        "guidance": 1.0, **further,
    }))  # fmt: skip


def test_an_evaluation_beside_it_is_what_quality_is_read_from(run_dir: Path) -> None:
    evaluate(run_dir)
    report([str(run_dir)])
    text = (run_dir / "report.html").read_text()
    assert "933 masks per step count" in text
    assert "<title>32: 0.09375</title>" in text
    assert "real masks <b>0.07</b>" in text


@pytest.mark.parametrize("parts", [False, True], ids=["file", "parts"])
def test_an_evaluation_of_an_earlier_state_is_not_taken_for_one_of_this(run_dir: Path, parts: bool) -> None:
    def save(name: str, content: str) -> None:
        folder = run_dir / f"{content}.parts"
        if parts:
            folder.mkdir()
            for file in ("about.pt", "shard-00001-model-00001-of-00001.safetensors"):
                (folder / file).write_text(f"{file} {content}")
            (run_dir / name).unlink(missing_ok=True)
            (run_dir / name).symlink_to(folder.name)
        else:
            (run_dir / name).write_text(content)

    save("last.ckpt", "earlier")
    (run_dir / "best.ckpt").symlink_to("nothing")
    digest = file_hash(run_dir / "last.ckpt")
    evaluate(run_dir, checkpoint_sha256=digest)
    text = write_report(run_dir).read_text()
    assert "From evaluation.json, which judged last.ckpt: 933 masks" in text
    assert "<title>32: 0.09375</title>" in text
    (run_dir / "best.ckpt").unlink()
    (run_dir / "last.ckpt").rename(run_dir / "best.ckpt")
    save("last.ckpt", "later")
    assert "From evaluation.json, which judged best.ckpt: 933 masks" in write_report(run_dir).read_text()
    (run_dir / "best.ckpt").unlink()
    text = write_report(run_dir).read_text()
    assert "evaluation.json judged none of the checkpoints that are here now" in text
    assert "<title>4: 2</title>" in text
    assert "<title>32: 0.09375</title>" not in text


def test_checkpoints_are_read_only_where_there_is_an_evaluation(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run_dir / "best.ckpt").write_text("weights")
    (run_dir / "last.ckpt").hardlink_to(run_dir / "best.ckpt")
    read: list[str] = []

    def note(path: Path) -> str:
        read.append(path.name)
        return ""

    monkeypatch.setattr("metrics.run_report.file_hash", note)
    write_report(run_dir)
    assert read == []
    evaluate(run_dir, checkpoint_sha256="0")
    write_report(run_dir)
    assert read == ["last.ckpt"]  # both names are of one file


def test_a_failure_to_write_is_one_warning(run_dir: Path) -> None:
    (run_dir / "run.json").write_text('{"kind": "diffus')
    with pytest.warns(UserWarning, match=r"report\.html could not be written") as caught:
        assert report_if_possible(run_dir) is None
    assert len(caught) == 1
    assert not (run_dir / "report.html").exists()
    with pytest.warns(UserWarning, match="a picture of this training could not be written"):
        keep_picture(run_dir / "config.json", "samples", 1, torch.rand(3, 4, 4), [])


def test_a_folder_that_is_no_training_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        report([str(tmp_path)])
    assert end.value.code == 2
    assert "holds no config.json" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["config.json", "run.json", "evaluation.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "\udcff"])
def test_a_damaged_file_is_said_in_a_sentence(
    name: str, content: str, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_dir / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(SystemExit) as end:
        report([str(run_dir)])
    assert end.value.code == 2
    assert "holds a file that is damaged, or no training's" in capsys.readouterr().err


@pytest.mark.parametrize("values", [(1e20, 1e20), (1e-320, 1e-320), (0.0, 0.0), (-3.0, -3.0)])
def test_a_chart_of_equal_values_has_an_axis(values: tuple[float, float]) -> None:
    assert "<svg" in line_chart({"a": list(enumerate(values))}, "x")


def test_a_picture_says_what_it_shows_and_others_are_left_out(run_dir: Path) -> None:
    (run_dir / "pictures" / "other.png").write_bytes(b"no picture")
    found = kept_pictures(run_dir)
    assert {tag: [picture.step for picture in own] for tag, own in found.items()} == {
        "samples/1_steps": [5, 10], "samples/4_steps": [5, 10],
    }
    assert found["samples/1_steps"][0].rows == ("a cat", "a <b>")


def test_a_chart_puts_points_where_their_values_are() -> None:
    drawn = line_chart({"a": [(0, 0), (5, 1), (10, 2)], "nothing": [(0, float("nan"))]}, "x")
    line = re.search(r'class="line c0" d="M([^"]+)"', drawn)
    assert line
    points = [tuple(map(float, pair.split())) for pair in line[1].split("L")]
    assert [x for x, _ in points] == pytest.approx([LEFT, (LEFT + WIDTH - RIGHT) / 2, WIDTH - RIGHT], abs=0.1)
    assert points[0][1] - points[1][1] == pytest.approx(points[1][1] - points[2][1], abs=0.11)
    assert points[0][1] > points[2][1]  # up is more
    assert "nothing" not in drawn
    assert line_chart({"a": []}, "x") == ""


def test_a_wide_range_gets_a_logarithmic_axis() -> None:
    drawn = line_chart({"a": [(1, 1), (2, 10), (4, 100)]}, "x", log_x=True)
    circles = [tuple(map(float, found)) for found in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', drawn)]
    (x0, y0), (x1, y1), (x2, y2) = circles
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.11)


def test_smoothing_keeps_a_straight_line_inside_and_numbers_are_short() -> None:
    points = [(float(i), 2.0 * i) for i in range(90)]
    assert smoothed(points)[3:-3] == points[3:-3]
    assert [number(v) for v in (0.0, 0.25, 20000.0, 1500.0, 0.0005, 0.00025)] == [
        "0", "0.25", "20k", "1500", "5e-4", "2.5e-4",
    ]
