"""One file to generate from: ``python -m scripts.export --checkpoint runs/x/last.ckpt [--format onnx]``.

Writes the averaged weights of both stages as safetensors, or the way from prompts' states to masks as a graph (ONNX or
torch.export), and a JSON file with config, shapes and SHA-256 beside it.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from configs.cli import as_text, from_dict, parse
from configs.diffusion_cfg import Stage2Cfg
from configs.export_cfg import ExportCfg
from configs.shipped import FOLDER, checkpoint_path
from configs.whole_file import file_hash, write_text, write_whole
from scripts.run import refuse_kindly

DECIDES = ("prediction", "train_guidance", "most_guidance", "schedule", "timesteps", "zero_terminal_snr")
"""Settings of samplers that decide what the answers of a network mean."""


def main(argv: list[str] | None = None) -> None:
    cfg: ExportCfg = parse(ExportCfg, argv, "python -m scripts.export", "Write a model as one file.")
    with refuse_kindly("export"):
        print(as_text(cfg), flush=True)
        out = export(cfg)
        print(f"model: {out} ({out.stat().st_size / 1e6:.1f} MB)\nabout it: {told_in(out)}")


def export(cfg: ExportCfg) -> Path:
    """Write both files; returns the model's.

    Raises:
        CheckpointError: a checkpoint that cannot be used, or two that cannot be blended.
        FileExistsError: a file that is already there (without ``overwrite``).
    """
    source = checkpoint_path(cfg.checkpoint)
    beside = source.parent / "model" if source.parent != FOLDER else Path("runs") / source.stem
    out = Path(cfg.out).expanduser() if cfg.out else beside.with_suffix(f".{cfg.format}")
    for path in (out, told_in(out)):
        if path.exists() and not cfg.overwrite:
            raise FileExistsError(f"{path} is already there: name another file with --out, or add --overwrite True")

    from models.checkpoint import read_checkpoint
    from models.export import KEY, MAKE

    content = read_checkpoint(source, "diffusion", MAKE)
    if not content[KEY]["complete"]:
        print(f"warning: the training of {source} was not finished", file=sys.stderr)
    if cfg.blend:
        content = blend(content, cfg)
    with told_no_more(out):
        about = export_weights(content, out, cfg) if cfg.format == "safetensors" else export_graph(source, out, cfg)
    write_text(told_in(out), json.dumps(about, indent=2) + "\n")
    return out


def told_in(out: Path) -> Path:
    """The JSON file about an export: model.json, or model.onnx.json, since a graph may lie beside the weights."""
    return out.with_suffix(".json") if out.suffix == ".safetensors" else out.with_name(f"{out.name}.json")


@contextlib.contextmanager
def told_no_more(out: Path) -> Iterator[None]:
    """Without the JSON file while ``out`` is written: it tells the hash of what is replaced. It comes back if an error
    leaves ``out`` as it was.
    """
    told = told_in(out)
    before, old = told.read_bytes() if told.is_file() else None, out.stat() if out.exists() else None
    told.unlink(missing_ok=True)
    try:
        yield
    except BaseException:
        if before is not None and old is not None and out.exists() and os.path.samestat(out.stat(), old):
            write_whole(told, lambda file: file.write(before))
        raise


def export_weights(content: dict[str, Any], out: Path, cfg: ExportCfg) -> dict[str, Any]:
    """Write the safetensors file; returns what is told beside it."""
    import torch

    from models.export import KEY, averaged, write_export

    tensors = averaged(content["state_dict"], torch.bfloat16 if cfg.dtype == "bf16" else torch.float32)
    told = without_places(content[KEY])
    write_export(out, tensors, told)
    return {
        "sha256": file_hash(out), "training_steps": content.get("global_step"),
        **({"blend": content["blend"]} if cfg.blend else {}), **told,
        "tensors": {name: list(value.shape) for name, value in tensors.items()},
    }


def blend(content: dict[str, Any], cfg: ExportCfg) -> dict[str, Any]:
    """``content`` with the means of its weights and those of the second model, which its entry ``blend`` tells.

    Raises:
        CheckpointError: the second model cannot be used, or is not like the first.
    """
    import torch

    from models.checkpoint import CheckpointError, read_checkpoint
    from models.export import KEY, MAKE, averaged, blended

    second = checkpoint_path(cfg.blend)
    other = read_checkpoint(second, "diffusion", MAKE)
    one, two = (averaged(each["state_dict"], torch.float32) for each in (content, other))
    own, theirs = (from_dict(Stage2Cfg, each[KEY]["config"]) for each in (content, other))
    try:
        for part in ("backbone", "text"):
            if getattr(own, part) != getattr(theirs, part):
                raise ValueError(f"their settings of {part} differ")
        one_by_one = [[getattr(each.sampler, name, None) for name in DECIDES] for each in (own, theirs)]
        if type(own.sampler) is not type(theirs.sampler) or one_by_one[0] != one_by_one[1]:
            raise ValueError("what their networks answer differs (sampler)")
        mean = blended(one, two, cfg.share)
    except ValueError as reason:
        raise CheckpointError(
            second, f"it cannot be blended with {cfg.checkpoint}: {reason}",
            "take a model and the one that its training began with (--init)",
        ) from None  # fmt: skip
    if not other[KEY]["complete"]:
        print(f"warning: the training of {second} was not finished", file=sys.stderr)
    told = {"sha256": file_hash(second) if second.is_file() else "", "share": cfg.share}
    return content | {"state_dict": mean, "blend": told}


def export_graph(source: Path, out: Path, cfg: ExportCfg) -> dict[str, Any]:
    """Write the graph; prints how it compares with the model, and returns what is told beside it."""
    from scripts.graphs import write_graph
    from scripts.mask_model import load_mask_model

    module = load_mask_model(source)
    told = write_graph(module, out, cfg.steps)
    if module.reader is not None:
        print("not in the graph: the reader, which corrects masks of captions of geometry here")
    print(f"difference from the model's probabilities: {told['rms_error']:.1e} in root mean square, "
          f"{told['largest_error']:.1e} at most")  # fmt: skip
    for rows, times in told["milliseconds"].items():
        spoken = ", ".join(f"{name} {ms} ms" for name, ms in times.items())
        print(f"{rows.replace('_', ' ').replace('1 masks', '1 mask')} in {cfg.steps} step(s) on {told['threads']} "
              f"thread(s): {spoken}")  # fmt: skip
    text = {"encoder": module.cfg.text.encoder, "max_tokens": module.cfg.text.max_tokens,
            "articles": module.cfg.text.articles}
    return {"sha256": file_hash(out), "text": text, **told}


def without_places(about: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of itself, without the folders of the machine that trained it."""
    nowhere = {"run_dir": "", "resume": "none"}
    stage_1, stage_2 = about["autoencoder"], about["config"]
    return about | {
        "autoencoder": stage_1 | {"init": "", "train": stage_1["train"] | nowhere},
        "config": stage_2 | {"autoencoder": "auto", "init": "", "train": stage_2["train"] | nowhere},
    }


if __name__ == "__main__":
    main()
