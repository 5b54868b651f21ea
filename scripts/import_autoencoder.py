"""Take an ``AutoencoderKL`` of diffusers as frozen stage 1: ``python -m scripts.import_autoencoder folder --vae PATH``.

Measures the latents of the training masks and tells how well held-out masks are rebuilt. Stage 2 then finds it as it
finds a trained one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from configs.autoencoder_cfg import ImportedCfg, Stage1Cfg
from configs.checks import ConfigError, first_line
from configs.cli import as_text, parse_preset, to_dict
from configs.import_cfg import IMPORTS, ImportCfg
from configs.run_folder import choose_run_dir, describe_run, release
from configs.trainer_cfg import TrainerCfg
from configs.whole_file import write_text, write_whole
from scripts.run import refuse_kindly

BATCH = 64


def main(argv: list[str] | None = None) -> None:
    name, cfg = parse_preset(IMPORTS, argv, "python -m scripts.import_autoencoder")
    with refuse_kindly("import_autoencoder"):
        if not cfg.vae.strip():
            raise ConfigError("vae is empty: name the folder of an AutoencoderKL with --vae")
        print(as_text(cfg), flush=True)
        take(cfg, name)


def take(cfg: ImportCfg, name: str) -> Path:
    """Write the run folder of a complete stage 1; returns it.

    Raises:
        ConfigError: an autoencoder that cannot be used for such masks.
        ModuleNotFoundError: diffusers is missing.
    """
    import torch

    from autoencoder import AutoencoderModule
    from data.datasets import to_tensor
    from data.sources import data_fingerprint, load_splits, prepare
    from metrics.reconstruction import iou
    from models.imported_vae import ImportedVAE

    if cfg.run_dir and (Path(cfg.run_dir) / "last.ckpt").exists():
        raise ConfigError(f"run_dir is {cfg.run_dir!r}, which already holds a training: name another folder")
    net = read(cfg.vae)
    module = AutoencoderModule(stage_1(net, cfg), data_fingerprint(cfg.data)).eval().requires_grad_(False)
    for vae in (module.vae, module.average):
        cast(ImportedVAE, vae).net.load_state_dict(net.state_dict())
    prepare(cfg.data)
    train, held_out = load_splits(cfg.data)
    run_dir = choose_run_dir(TrainerCfg(runs=cfg.runs, run_dir=cfg.run_dir), f"{name}-stage1")
    try:
        module.measure_latents(to_tensor(train.images[at : at + BATCH]) for at in range(0, len(train), BATCH))
        module.complete = True
        x = to_tensor(held_out.images[:256])
        p = torch.cat([module.to_pixels(module.to_latent(part)).sigmoid() for part in x.split(BATCH)])
        score = f"IoU {float(iou(p > 0.5, x > 0.5).mean()):.4f}" if x.shape[1] == 1 else (
            f"mean absolute error {float((p - x).abs().mean()):.4f}")  # fmt: skip
        content: dict[str, Any] = {"state_dict": shared(module.state_dict()), "global_step": 0}
        module.on_save_checkpoint(content)
        write_whole(run_dir / "last.ckpt", lambda file: torch.save(content, file))
        write_text(run_dir / "config.json", json.dumps(to_dict(module.cfg), indent=2) + "\n")
        describe_run(run_dir, "autoencoder", module.data, "complete")
    finally:
        release(run_dir)
    spread = ", ".join(f"{s:.3f}" for s in module.latent_std.flatten().tolist())
    print(f"latents {module.latent_shape} with standard deviations {spread}\n"
          f"held-out masks are rebuilt with {score}\ncomplete: {run_dir / 'last.ckpt'}")  # fmt: skip
    return run_dir


def read(place: str) -> Any:
    """The autoencoder of a folder or name, in fp32.

    Raises:
        ConfigError: it is none, or lacks weights, which diffusers would fill at random.
    """
    from models.imported_vae import autoencoder_kl

    try:
        net, found = autoencoder_kl().from_pretrained(
            place, use_safetensors=True, output_loading_info=True,
            ignore_mismatched_sizes=True, low_cpu_mem_usage=False,  # so that all of them are listed, with any loader
        )  # fmt: skip
    except (OSError, ValueError) as reason:
        raise ConfigError(f"vae is {place!r}, which could not be read as an AutoencoderKL ({first_line(reason)}): "
                          "name a folder with config.json and diffusion_pytorch_model.safetensors"
                          ) from None  # fmt: skip
    unread = sorted([*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])])
    if unread:
        raise ConfigError(f"vae is {place!r}, but its weights lack {unread[0]} or hold it in another shape (as "
                          f"{len(unread)} of the tensors of such an AutoencoderKL): name a folder whose config.json "
                          "and diffusion_pytorch_model.safetensors are both of one whole AutoencoderKL")  # fmt: skip
    return net.float()


def stage_1(net: Any, cfg: ImportCfg) -> Stage1Cfg:
    """The config of a stage 1 that is this autoencoder."""
    about = {key: value for key, value in net.config.items() if not key.startswith("_")}
    if cfg.data.channels == 3 and about["in_channels"] != 3:
        raise ConfigError(f"vae takes images of {about['in_channels']} channel(s), but data.channels is 3")
    shape = ImportedCfg(
        latent_channels=about["latent_channels"], multipliers=(1,) * len(about["block_out_channels"]),
        config=json.dumps(about),
    )  # fmt: skip
    return Stage1Cfg(data=cfg.data, autoencoder=shape, ema=0.0)


def shared(state: dict[str, Any]) -> dict[str, Any]:
    """The state, with the average's tensors those of the network itself, so that a file holds them once."""
    return {name: state.get(name.replace("average.", "vae.", 1), value) for name, value in state.items()}


if __name__ == "__main__":
    main()
