"""WebDataset shards: what is written is read back, shared out without overlap, taken up exactly, and refused kindly."""

import contextlib
import http.server
import io
import sys
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from configs.checks import ConfigError
from configs.data_cfg import AugmentCfg, DataCfg, EmbeddedSource, FolderSource, ShardSource
from configs.make_shards_cfg import MakeShardsCfg
from data import shards
from data.masks import DataError, MaskSet
from data.module import MaskDataModule
from data.sources import data_fingerprint, load_splits
from data.stream import Lanes, ShardStream
from scripts.make_shards import make_shards, write_part
from tests.data_fixtures import random_masks, write_mask, write_masks


def written(folder: Path, masks: MaskSet, samples: int, name: str = "train") -> Path:
    folder.mkdir(exist_ok=True)
    write_part(folder, name, iter([masks]), samples)
    return folder


def config(folder: Path | str, **changes: Any) -> DataCfg:
    source = {name: changes.pop(name) for name in ("test", "max_bad", "shuffle", "memory") if name in changes}
    return DataCfg(ShardSource(str(folder), **source), **{"image_size": 8, "batch_size": 4, **changes})


def contents(masks: MaskSet) -> Counter[tuple[bytes, str]]:
    return Counter((image.tobytes(), prompt) for image, prompt in zip(masks.images, masks.prompts, strict=True))


def stream(cfg: DataCfg, share: Lanes = Lanes(), seed: int = 0) -> ShardStream:  # noqa: B008  # a frozen value
    return ShardStream(cfg, load_splits(cfg)[1], seed, share)


def one_pass(made: ShardStream, lane: int) -> list[int]:
    """Indices of the first pass of one lane."""
    found = []
    for sample, _, _, place in made.masks(lane):
        if place.number:
            return found
        found.append(sample.shard << 32 | sample.row)
    raise AssertionError("a stream has no end")


@pytest.mark.parametrize("channels", [1, 3])
def test_masks_captions_and_split_are_those_of_the_original_source(channels: Any, tmp_path: Path) -> None:
    original = DataCfg(EmbeddedSource("icons64"), image_size=16, channels=channels, val_fraction=0.3)
    few = replace(original, source=FolderSource(str(tmp_path / "masks"), default_prompt="thing"), image_size=8)
    write_masks(tmp_path / "masks" / "a", 30)
    (tmp_path / "masks" / "a" / "03.txt").write_text("  übergroß, a  thing\n", encoding="utf-8")
    (tmp_path / "masks" / "a" / "04.txt").write_text("")
    out = make_shards(MakeShardsCfg(few, str(tmp_path / "out"), samples=7))
    assert sorted(path.name for path in out.iterdir()) == [f"train-{i:06d}.tar" for i in range(5)]
    with tarfile.open(out / "train-000000.tar") as tar:
        assert [Path(name).suffix for name in tar.getnames()] == [".png", ".txt"] * 7
    for ours, theirs in zip(load_splits(replace(few, source=ShardSource(str(out)))), load_splits(few), strict=True):
        assert contents(ours) == contents(theirs)
    assert len(load_splits(few)[1]) > 3  # something is held out


def test_a_source_with_masks_for_testing_keeps_them_apart(tmp_path: Path) -> None:
    write_masks(tmp_path / "train", 20)
    test = write_masks(tmp_path / "test", 6, seed=5)
    write_mask(tmp_path / "test" / "copy.png", np.rot90(random_masks(20).images[3]).copy())
    cfg = DataCfg(FolderSource(str(tmp_path / "train"), str(tmp_path / "test")), image_size=8)
    out = make_shards(MakeShardsCfg(cfg, str(tmp_path / "out"), samples=5))
    ours = config(out)
    with pytest.warns(UserWarning, match="1 training masks are copies of test masks"):
        train, held_out = load_splits(ours)
    assert {image.tobytes() for image in test} < {image.tobytes() for image in held_out.images}
    assert len(train) == 19
    made = ShardStream(ours, held_out, 0, Lanes())
    seen = {image.tobytes() for (_, image, _, _), _ in zip(made.masks(0), range(60), strict=False)}
    assert seen == {image.tobytes() for image in train.images}  # nor is the copy in the stream


@pytest.mark.parametrize(("world", "lanes"), [(1, 1), (2, 1), (1, 3), (2, 2)])
def test_ranks_and_workers_see_disjoint_shares_and_together_everything(world: int, lanes: int, tmp_path: Path) -> None:
    cfg = config(written(tmp_path / "s", random_masks(60), 7), shuffle=10)
    held_out = load_splits(cfg)[1]
    shares = [one_pass(stream(cfg, Lanes(rank, world, lanes)), lane) for rank in range(world) for lane in range(lanes)]
    seen = [index for share in shares for index in share]
    assert all(shares)
    assert len(set(seen)) == len(seen) == 60 - len(held_out)
    assert len(held_out)


def test_a_sample_is_named_by_its_shard_and_its_place_there(tmp_path: Path) -> None:
    made = stream(config(written(tmp_path / "s", random_masks(60), 7)))
    assert made.name(2 << 32 | 3) == f"sample 3 of {tmp_path / 's' / 'train-000002.tar'}"
    (sample, *_) = next(iter(made.masks(0)))
    assert next(made.batches(0))["index"][0] == sample.shard << 32 | sample.row


def test_each_pass_and_seed_has_its_own_order_and_the_buffer_mixes(tmp_path: Path) -> None:
    cfg = config(written(tmp_path / "s", random_masks(60), 7), shuffle=30)
    made = stream(cfg)
    total = len(one_pass(made, 0))
    drawn = [sample.shard * 7 + sample.row for (sample, *_), _ in zip(made.masks(0), range(2 * total), strict=False)]
    first, second = drawn[:total], drawn[total:]
    assert sorted(first) == sorted(second)
    assert first != second
    assert one_pass(stream(cfg, seed=1), 0) != one_pass(made, 0) == one_pass(stream(cfg), 0)
    shard = [number // 7 for number in first]
    assert sum(a != b for a, b in pairwise(shard)) > total / 3  # not one shard after the other


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stream_taken_up_anywhere_goes_on_as_if_it_had_not_stopped(workers: int, tmp_path: Path) -> None:
    cfg = config(written(tmp_path / "s", random_masks(50), 9), shuffle=8, batch_size=3, augment=AugmentCfg(hflip=0.5))

    def batches(made: ShardStream, count: int) -> list[Any]:
        """In the order in which a DataLoader asks its processes."""
        lanes = [made.batches((lane + made.next_lane) % workers) for lane in range(workers)]
        return [next(lanes[i % workers]) for i in range(count)]

    share = Lanes(0, 1, workers)
    whole = batches(stream(cfg, share), 40)
    assert max(int(batch["place"][1]) for batch in whole) > 0  # more than a pass
    for stop in range(1, 39, 5):
        first = stream(cfg, share)
        for batch in whole[:stop]:
            first.done(*batch["place"].tolist())
        saved = first.state() | {"places": [[list(place) for place in first.places]]}
        second = stream(cfg, share)
        assert second.take_up(saved) == ""
        for ours, theirs in zip(batches(second, 40 - stop), whole[stop:], strict=True):
            assert ours["index"].equal(theirs["index"])
            assert ours["image"].equal(theirs["image"])
            assert ours["prompt"] == theirs["prompt"]


def test_with_other_processes_the_next_pass_begins_and_what_changed_is_told(tmp_path: Path) -> None:
    cfg = config(written(tmp_path / "s", random_masks(50), 9))
    first = stream(cfg)
    first.done(0, 2, 1, 0, 5)
    saved = first.state() | {"places": [[list(place) for place in first.places]]}
    second = stream(cfg, Lanes(1, 2, 2))
    assert second.take_up(saved) == "processes 1 -> 2, workers 1 -> 2"
    assert second.places == [(3, 0, 0, 0)] * 2


def test_loader_processes_hand_out_what_the_stream_says(tmp_path: Path) -> None:
    cfg = config(written(tmp_path / "s", random_masks(50), 9), workers=2)
    module = MaskDataModule(cfg, seed=0)
    module.setup()
    expected = stream(cfg, Lanes(0, 1, 2))
    lanes = [expected.batches(0), expected.batches(1)]
    for number, batch in zip(range(6), module.train_dataloader(), strict=False):
        assert batch["index"].equal(next(lanes[number % 2])["index"])


def test_a_folder_of_shards_is_the_same_data_however_its_name_ends() -> None:
    assert data_fingerprint(DataCfg(ShardSource("s/"))) == data_fingerprint(DataCfg(ShardSource("s")))


def test_a_limit_beyond_what_is_read_into_memory_is_warned_of(tmp_path: Path) -> None:
    folder = written(tmp_path / "s", random_masks(60), 10)
    with pytest.warns(UserWarning, match=r"data\.limit is 40, but data\.source\.memory is 20, of which 1[0-9] masks"):
        load_splits(config(folder, memory=20, limit=40))
    assert len(load_splits(config(folder, limit=100))[0]) > 40  # there are no more than that



def test_a_limit_is_held_in_memory_and_needs_no_stream(tmp_path: Path) -> None:
    module = MaskDataModule(config(written(tmp_path / "s", random_masks(50), 9), limit=8), seed=0)
    module.setup()
    assert not module.streams
    assert len(module.train_set) == 8
    assert sum(len(batch["prompt"]) for batch in module.train_dataloader()) == 8


def test_memory_takes_so_many_masks_from_several_shards(tmp_path: Path) -> None:
    cfg = config(written(tmp_path / "s", random_masks(60), 10), memory=20)
    train, held_out = load_splits(cfg)
    assert len(train) + len(held_out) == 20
    assert len({name.partition("/")[0] for name in train.names + held_out.names}) == 5  # four of each shard


def add(path: Path, **files: bytes) -> None:
    """A shard of one more sample."""
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name.replace("_", "."))
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(random_masks(1, seed=9).images[0] * np.uint8(255)).save(file, "PNG")
    return file.getvalue()


def test_bad_samples_are_skipped_with_a_warning_up_to_a_share(tmp_path: Path) -> None:
    folder = written(tmp_path / "s", random_masks(50), 25)
    add(folder / "train-bad.tar", a_png=b"no picture", b_txt=b"no image", c_png=png(), c_txt=b"\xff", d_png=png())
    with pytest.warns(UserWarning, match="skipped") as warned:
        train, held_out = load_splits(config(folder))
    assert len(train) + len(held_out) == 51
    said = " ".join(str(one.message) for one in warned)
    for sentence in (
        "bad.tar/a cannot be read as an image", "bad.tar/b has no image", "train-bad.tar/c.txt is not UTF-8",
    ):  # fmt: skip
        assert sentence in said
    assert "Binary Mask" in train.prompts + held_out.prompts  # d has no caption
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(DataError, match="3 of 54 samples cannot be used"):
        load_splits(config(folder, max_bad=0.01))


def test_a_stream_ends_with_a_sentence_where_too_many_samples_are_bad(tmp_path: Path) -> None:
    folder = written(tmp_path / "s", random_masks(30), 10)
    cfg = config(folder, max_bad=0.05)
    made = stream(cfg)
    add(folder / "train-000002.tar", a_png=b"no picture", b_png=b"nor this", c_png=png())
    with pytest.warns(UserWarning, match="skipped"):
        *_, last = made
    assert "2 of 23 samples cannot be used, more than 5 %" in last["error"]
    module = MaskDataModule(cfg, 0)
    with pytest.raises(DataError, match="2 of 23"):
        module.on_before_batch_transfer(last, 0)


def test_a_cut_off_shard_is_refused_in_one_sentence_before_training(tmp_path: Path) -> None:
    folder = written(tmp_path / "s", random_masks(30), 10)
    shard = folder / "train-000001.tar"
    content = shard.read_bytes()
    for keep in (len(content) // 2, 512, 0, len(content) - 10240):
        shard.write_bytes(content[:keep])
        with pytest.raises(DataError, match=r"train-000001\.tar is cut off or no tar file") as error:
            load_splits(config(folder))
        assert "\n" not in str(error.value)
    shard.write_bytes(b"not a tar file" + bytes(2048))
    with pytest.raises(DataError, match="is cut off or no tar file"):
        load_splits(config(folder))


def test_a_shard_that_is_cut_off_on_the_way_ends_the_stream_in_one_sentence(tmp_path: Path) -> None:
    folder = written(tmp_path / "s", random_masks(30), 10)
    made = stream(config(folder))
    shard = folder / "train-000001.tar"
    for keep in (shard.stat().st_size // 2 // 512 * 512, shard.stat().st_size // 2 + 100):
        shard.write_bytes(shard.read_bytes()[:keep])
        *_, last = made
        assert "train-000001.tar is cut off or no tar file" in last["error"]
        assert "\n" not in last["error"]


def test_a_file_too_large_or_named_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(tmp_path / "a.tar", a_png=png())
    with tarfile.open(tmp_path / "twice.tar", "w") as tar:
        for _ in range(2):
            info = tarfile.TarInfo("a.png")
            info.size = len(png())
            tar.addfile(info, io.BytesIO(png()))
    with pytest.raises(DataError, match="holds a file twice"):
        list(shards.read_samples([str(tmp_path / "twice.tar")], 0))
    monkeypatch.setattr(shards, "LARGEST", 10)
    with pytest.raises(DataError, match="too much for an image"):
        list(shards.read_samples([str(tmp_path / "a.tar")], 0))


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("nowhere", "is not there"), ("nowhere-*.tar", r"no tar file; make shards with \.venv/bin/python -m scripts"),
        ("pipe:touch {0}", "is no address"),
        ("file:///etc/passwd", "is no address"), ("ftp://x/y.tar", "is no address"), ("s-{0..99}.tar", "more than"),
        ("a{0..1}.tar", "a0.tar is not there"), ("a{0..3.tar", "whose braces are no pattern"),
        ("a{0..99999999999}.tar", "more than"), ("a{0..99999999999999999999999}.tar", "more than"),
        ("a{0..98..2}.tar", "a0.tar is not there"), ("a{1234567890123456789,2}.tar", "a1234567890123456789.tar is not"),
    ],
)  # fmt: skip
def test_what_names_no_shards_is_refused_and_nothing_is_run(
    train: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shards, "MOST_SHARDS", 50)
    with pytest.raises(DataError, match=message):
        load_splits(config(train.replace("{0}", str(tmp_path / "made"))))
    assert not (tmp_path / "made").exists()


def test_stores_name_the_package_that_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ModuleNotFoundError, match=r": \.venv/bin/python -m pip install s3fs"):
        load_splits(config("s3://bucket/a.tar"))


def test_without_webdataset_one_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = written(tmp_path / "s", random_masks(30), 10)
    for name in ("webdataset", "webdataset.tariterators"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=r'^WebDataset .*: \.venv/bin/python -m pip install "webdataset'):
        load_splits(config(folder))
    with pytest.raises(ModuleNotFoundError, match="pip install"):
        make_shards(MakeShardsCfg(DataCfg(), str(tmp_path / "out")))


def test_fewer_shards_than_processes_is_an_error(tmp_path: Path) -> None:
    cfg = config(written(tmp_path / "s", random_masks(30), 10))
    with pytest.raises(DataError, match="3 shards cannot be shared by 2 processes with 2 loaders each"):
        stream(cfg, Lanes(0, 2, 2))


class Faulty(http.server.SimpleHTTPRequestHandler):
    """Breaks off its first answers in the middle."""

    left = 0

    def copyfile(self, source: Any, outputfile: Any) -> None:
        if type(self).left > 0:
            type(self).left -= 1
            outputfile.write(source.read(9000))
            self.close_connection = True
        else:
            super().copyfile(source, outputfile)

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path, failures: int) -> Iterator[str]:
    Faulty.left = failures
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Faulty, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_addresses_are_read_and_a_lost_connection_is_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards.time, "sleep", lambda _: None)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = written(tmp_path / "s", random_masks(30), 10)
    for failures in (0, 2):
        with served(folder, failures) as address:
            found = load_splits(config(f"{address}/train-{{000000..000002}}.tar"))
        for ours, theirs in zip(found, load_splits(config(folder)), strict=True):
            assert contents(ours) == contents(theirs)
    with served(folder, 100) as address, pytest.raises(DataError, match="is cut off or no tar file"):
        load_splits(config(f"{address}/train-000000.tar"))
    with served(folder, 0) as address, pytest.raises(DataError, match=r"cannot be read.*404"):
        load_splits(config(f"{address}/nothing.tar"))


def test_shards_that_another_process_is_writing_are_left_alone(tmp_path: Path) -> None:
    write_masks(tmp_path / "masks", 30)
    half = tmp_path / ".out.part" / "train-000000.tar"
    half.parent.mkdir()
    half.write_bytes(b"half")
    cfg = MakeShardsCfg(DataCfg(FolderSource(str(tmp_path / "masks")), image_size=8), str(tmp_path / "out"))
    with pytest.raises(FileExistsError, match=r"\.out\.part is already there: another make_shards .* remove that"):
        make_shards(cfg)
    assert half.read_bytes() == b"half"
    assert not (tmp_path / "out").exists()


def test_shards_are_there_whole_or_not_at_all(tmp_path: Path) -> None:
    write_masks(tmp_path / "masks", 30)
    for number in range(5):
        (tmp_path / "masks" / f"bad{number}.png").write_bytes(b"no picture")
    cfg = DataCfg(FolderSource(str(tmp_path / "masks")), image_size=8)
    with pytest.raises(DataError, match="5 of 35 images cannot be used"):
        make_shards(MakeShardsCfg(cfg, str(tmp_path / "out")))
    assert [path.name for path in tmp_path.iterdir()] == ["masks"]
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/a.png").write_bytes(b"no picture")
    none = replace(cfg, source=FolderSource(str(tmp_path / "broken"), max_bad=1.0))
    with pytest.raises(DataError, match=r"train has no mask that can be used: .*check_data FOLDER tells why"):
        make_shards(MakeShardsCfg(none, str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
    some = replace(cfg, source=replace(cfg.source, max_bad=0.5))
    with pytest.warns(UserWarning, match="skipped"):
        out = make_shards(MakeShardsCfg(some, str(tmp_path / "out")))
    with pytest.raises(FileExistsError, match="already there"):
        make_shards(MakeShardsCfg(some, str(out)))
    again = make_shards(MakeShardsCfg(config(out), str(tmp_path / "again"), samples=4))  # shards of shards
    for ours, theirs in zip(load_splits(config(again)), load_splits(config(out)), strict=True):
        assert contents(ours) == contents(theirs)
    with pytest.raises(ConfigError, match=r"data\.limit"):
        MakeShardsCfg(replace(cfg, limit=3), "x")
