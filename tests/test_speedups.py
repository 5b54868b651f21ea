"""What makes a training faster: compiled networks, and calls that are recorded as CUDA graphs."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_1, TINY_2
from torch import Tensor, nn

from configs.benchmark_cfg import BenchmarkCfg
from configs.checks import ConfigError
from configs.sampler_cfg import TrajectoryCfg
from configs.trainer_cfg import TrainerCfg
from models.cuda_graphs import MOST, Plain, Replayed, advice, replay_calls, require_one_gpu
from models.hardware import compile_networks, set_memory_format
from models.text import Condition, TextEncoder
from samplers import When
from scripts.benchmark import measure
from scripts.benchmarks.step import stage_2_step
from trainer import train_stage_2


class Shift(nn.Module):
    """A network of one weight that sees its prompts."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor, t: Tensor, dt: Tensor, cond: Condition) -> Tensor:
        answer = self.weight * x + (t - dt)[:, None] + (cond.tokens * cond.keep[..., None]).sum((1, 2))[:, None]
        return answer if cond.sketch is None else answer + self.weight * cond.sketch.sum((1, 2, 3))[:, None]


def call(rows: int, **condition: Any) -> tuple[Tensor, Tensor, Tensor, Condition]:
    cond = Condition(torch.randn(rows, 3, 5), torch.rand(rows, 3) > 0.5, **condition)
    return torch.randn(rows, 2), torch.rand(rows), torch.rand(rows), cond


def noting(seen: list[tuple[str, int]], name: str) -> Callable[..., Any]:
    """A recorder that notes what it is given, and answers as a recording does: from its own places of memory."""

    def record(plain: Plain, inputs: tuple[Tensor, ...]) -> Callable[..., Tensor]:
        seen.append((name, len(inputs[0])))

        def replay(*values: Tensor) -> Tensor:
            for place, value in zip(inputs, values, strict=True):
                place.copy_(value)
            return plain(*inputs)

        return replay

    return record


def test_each_shape_and_mode_is_recorded_once_and_answers_as_the_network_does() -> None:
    net, twin, seen = Shift(), Shift(), []  # type: ignore[var-annotated]  # of what noting() notes
    net.forward = Replayed(net, noting(seen, "training"), noting(seen, "answer"))
    for rows in (4, 4, 6, 4):
        inputs = call(rows)
        net.zero_grad()
        twin.zero_grad()
        net(*inputs).sum().backward()
        twin(*inputs).sum().backward()
        assert net.weight.grad is not None
        assert net.weight.grad.equal(twin.weight.grad)  # type: ignore[arg-type]  # it has one
    net.eval()
    with torch.no_grad():
        for _ in range(2):
            inputs = call(4)
            assert net(*inputs).equal(twin(*inputs))
    assert seen == [("training", 4), ("training", 6), ("answer", 4)]
    assert list(net.state_dict()) == ["weight"]


def test_a_call_that_must_be_in_fp32_is_no_recording_of_one_in_bf16() -> None:
    net, seen = Shift(), []  # type: ignore[var-annotated]  # likewise
    net.forward = Replayed(net.eval(), noting(seen, "training"), noting(seen, "answer"))
    with torch.no_grad():
        for cast in (True, False, True, False):
            with torch.autocast("cpu", torch.bfloat16, enabled=cast):
                net(*call(4))
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            net(*call(4))
    assert seen == [("answer", 4)] * 3


def test_further_shapes_and_prompts_with_guidance_are_computed_as_ever() -> None:
    net, twin, seen = Shift(), Shift(), []  # type: ignore[var-annotated]  # likewise
    net.forward = Replayed(net, noting(seen, "training"), noting(seen, "answer"))
    guided = call(3, guidance=torch.full((3,), 2.0))
    assert net(*guided).equal(twin(*guided))
    assert seen == []
    for rows in range(1, MOST + 3):
        inputs = call(rows)
        assert net(*inputs).equal(twin(*inputs))
    assert len(seen) == MOST
    with torch.no_grad():  # neither a training step nor a call of a network that is done: nothing to record it for
        net(*call(1))
    assert len(seen) == MOST


def test_a_recording_sees_the_sketches_of_each_call() -> None:
    net, twin, seen = Shift(), Shift(), []  # type: ignore[var-annotated]  # likewise
    net.forward = Replayed(net, noting(seen, "training"), noting(seen, "answer"))
    for sketched in (True, False, True):
        inputs = call(4, sketch=torch.rand(4, 1, 6, 6)) if sketched else call(4)
        assert net(*inputs).equal(twin(*inputs))
    assert seen == [("training", 4), ("training", 4)]


def test_nothing_is_replaced_unless_it_is_asked_for() -> None:
    net = Shift()
    replay_calls([net], TrainerCfg())
    compile_networks([net], TrainerCfg())
    assert "forward" not in net.__dict__
    assert net._compiled_call_impl is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_recordings_without_a_gpu_are_refused(tmp_path: Path) -> None:
    require_one_gpu(TrainerCfg())
    train = replace(TINY_2.train, cuda_graphs=True, run_dir=str(tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"train\.cuda_graphs is True, but this training has no CUDA GPU"):
        train_stage_2(replace(TINY_2, train=train), "tiny")
    assert not (tmp_path / "run").exists()


def test_recordings_of_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.cuda_graphs.first_device", lambda cfg: torch.device("cuda"))
    require_one_gpu(TrainerCfg(cuda_graphs=True, devices=1))
    with pytest.raises(ConfigError, match=r"this training has 8 processes: set train\.devices 1"):
        require_one_gpu(TrainerCfg(cuda_graphs=True, devices=4, nodes=2))


def test_recordings_are_advised_where_there_is_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert advice(TrainerCfg(accelerator="cpu")) == ""
    monkeypatch.setattr("models.cuda_graphs.first_device", lambda cfg: torch.device("cuda"))
    assert "--train.cuda-graphs True" in advice(TrainerCfg(devices=1))
    for other in (TrainerCfg(devices=1, cuda_graphs=True), TrainerCfg(devices=1, compile=True),
                  TrainerCfg(devices=1, accumulate=2), TrainerCfg(devices=4)):  # fmt: skip
        assert advice(other) == ""


@pytest.mark.parametrize("other", [{"compile": True}, {"accumulate": 2}])
def test_what_recordings_do_not_go_with_is_refused(other: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"train\.cuda_graphs is True, but it must be False where"):
        TrainerCfg(cuda_graphs=True, **other)


def test_weights_that_are_shared_out_are_not_compiled() -> None:
    with pytest.raises(ConfigError, match=r"train\.compile is True"):
        TrainerCfg(strategy="fsdp", compile=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_benchmark_says_that_recordings_need_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = measure(BenchmarkCfg("animals-tiny", only=("graphs",), quick=True, accelerator="cpu"))
    assert not any(key.endswith("_ratio") for key in numbers)
    assert "not measured: there is no CUDA GPU" in capsys.readouterr().out


def test_a_step_of_the_benchmark_records_the_network_and_the_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []
    monkeypatch.setattr("models.cuda_graphs.record_training", noting(seen, "training"))
    monkeypatch.setattr("models.cuda_graphs.record_answer", noting(seen, "answer"))
    cfg = replace(TINY_2, sampler=TrajectoryCfg(train_guidance=2.0), train=replace(TINY_2.train, cuda_graphs=True))
    step = stage_2_step(cfg, TINY_1, bf16=False, device=torch.device("cpu"))
    for number in range(2):
        step(When(number, 1.0))
    assert [name for name, _ in seen] == ["answer", "training"]  # the teacher's paths, then the network's rows


def test_prompts_are_padded_to_one_length_where_shapes_must_not_change() -> None:
    encoder = TextEncoder(TINY_2.text)
    short = encoder(["a cat"])
    encoder.padded = True
    whole = encoder(["a cat"])
    length = short.tokens.shape[1]
    assert length < whole.tokens.shape[1] == TINY_2.text.max_tokens
    assert whole.tokens[:, :length].equal(short.tokens)
    assert whole.keep.sum() == short.keep.sum()


def test_prompts_without_articles_mean_the_same() -> None:
    encoder = TextEncoder(replace(TINY_2.text, articles=False))
    for text, read in (
        ("a key", "key"), ("The key", "key"), ("an Umbrella  with the cat, a b", "Umbrella with cat, a b"),
        ("letter a", "letter a"), ("a", "a"), ("anchor, theatre", "anchor, theatre"),
    ):  # fmt: skip
        assert encoder.read(text) == read
    bare, asked = encoder(["key"]), encoder(["a key"])
    assert bare.tokens.equal(asked.tokens)
    assert TextEncoder(TINY_2.text)(["a key"]).tokens.shape != bare.tokens.shape


def test_where_nothing_can_be_compiled_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no working compiler\nand a hundred lines")

    monkeypatch.setattr(torch, "compile", lambda *_: broken)
    with pytest.raises(ConfigError, match=r"cannot compile for cpu here \(no working compiler\): install") as told:
        compile_networks([Shift()], TrainerCfg(compile=True, accelerator="cpu"))
    assert "hundred" not in str(told.value)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for the CPU with a C++ compiler")
def test_a_compiled_network_answers_as_before_and_keeps_its_names() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 1))
    x, names = torch.randn(5, 3), list(net.state_dict())
    before = net(x)
    compile_networks([net], TrainerCfg(compile=True, accelerator="cpu"))
    assert net._compiled_call_impl is not None
    after = net(x)
    assert torch.allclose(after, before, atol=1e-6)
    after.sum().backward()
    assert list(net.state_dict()) == names


def test_several_processes_measure_no_memory_format(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would find another where two are as fast, and DDP refuses filters that lie differently."""
    asked: list[int] = []

    def seconds(run: Callable[[], object], repeats: int) -> float:
        asked.append(repeats)
        return float(len(asked))

    monkeypatch.setattr("models.hardware.seconds", seconds)
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    net, cfg = nn.Sequential(nn.Conv2d(4, 4, 3)), TrainerCfg(accelerator="cpu", precision="fp32")
    set_memory_format(net, net, (torch.randn(1, 4, 8, 8),), replace(cfg, devices=2))
    assert not asked
    assert next(net.parameters()).is_contiguous()
    set_memory_format(net, net, (torch.randn(1, 4, 8, 8),), cfg)
    assert len(asked) == 2
