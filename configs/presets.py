"""A preset is a function that returns a whole typed config; copy one to start your own."""

from collections.abc import Callable
from dataclasses import replace

from configs.autoencoder_cfg import AutoencoderCfg, KLCfg, L1LossCfg, Stage1Cfg
from configs.backbone_cfg import UNetCfg
from configs.data_cfg import AugmentCfg, DataCfg, EmbeddedSource, FolderSource, MnistSource, ShardSource
from configs.diffusion_cfg import CriticCfg, EMACfg, ReaderCfg, SketchCfg, Stage2Cfg, TextCfg
from configs.sampler_cfg import ShortcutCfg, TrajectoryCfg
from configs.trainer_cfg import OptimCfg, TrainerCfg

ANIMALS = DataCfg(EmbeddedSource("animals32"), image_size=32, augment=AugmentCfg(hflip=0.5))
ICONS = DataCfg(EmbeddedSource("icons64"), image_size=64)
ICONS256 = DataCfg(FolderSource("icons256-train", "icons256-test"), image_size=256, batch_size=64)
COLLAGES = DataCfg(EmbeddedSource("collages64"), image_size=64, batch_size=64)
FOLDER = DataCfg(FolderSource(), image_size=64, batch_size=64)
MNIST = DataCfg(MnistSource(), image_size=32)
SHARDS = DataCfg(ShardSource(), image_size=64, batch_size=64, workers=2)
RGB = DataCfg(FolderSource(), image_size=64, channels=3, batch_size=64)

# A strong KL term leaves noise of a fifth of the latent's spread in the posterior, so the decoder learns to clean up
# what a single network step leaves behind.
SMALL_VAE = AutoencoderCfg(width=16, multipliers=(1, 4, 8), regulariser=KLCfg(1e-2))
SLIM_VAE = AutoencoderCfg(width=16, multipliers=(1, 2, 4), blocks=2, regulariser=KLCfg(1e-2))
LEAN_VAE = AutoencoderCfg(width=16, multipliers=(1, 2, 8), latent_channels=2, regulariser=KLCfg(1e-2))
WIDE_VAE = AutoencoderCfg(width=32, multipliers=(1, 2, 4), blocks=2, regulariser=KLCfg(1e-2))
SHORTCUT = ShortcutCfg(train_guidance=2.0, loss_power=0.5, consistency_weight=2.0)  # what others are compared with
# docs/results.md says how these were chosen: the flow first, then jumps learned from whole paths of the network's own.
TRAJECTORY = TrajectoryCfg(
    train_guidance=2.0, begin=0.7, share=0.375, one_step_atom=0.5, loss_power=1.0, flow_power=0.5,
    consistency_weight=4.0, nodes=6, per_path=6,
)
LONG_TRAJECTORY = TrajectoryCfg(
    train_guidance=2.0, begin=0.5, share=0.22, every=4, one_step_atom=0.5, loss_power=0.5, flow_power=0.5,
    consistency_weight=2.0,
)
# For a trained model: its single step learns where its own four jumps lead, the other steps to stay as they are.
ONE_STEP_TRAJECTORY = TrajectoryCfg(
    train_guidance=2.0, jumps_from=0.0, share=0.86, every=1, one_step_atom=0.5, loss_power=0.5, consistency_weight=2.0,
)
LONG_EMA = EMACfg(0.9995, 0.999)
ADAMW = OptimCfg(lr=1e-3, warmup_steps=100)
MUON = replace(ADAMW, muon_lr=1.5e-3)  # where it was measured to be better: docs/results.md
SMALL_UNET = UNetCfg(width=64, multipliers=(1, 2), blocks=2, attention_sizes=(4,))
# Fewer operations than SMALL_UNET and more parameters: a level of 2x2 latents costs a quarter of one of 4x4.
LEAN_UNET = UNetCfg(width=64, multipliers=(1, 2, 3), blocks=1, attention_sizes=(4, 2))
ICON_UNET = UNetCfg(width=128, multipliers=(1, 1), blocks=1, attention_sizes=(8, 4))


def stage1_animals_tiny() -> Stage1Cfg:
    """Stage 1 of the quickstart: 32x32 silhouettes, two minutes on two cores; two latent channels (docs/results.md)."""
    return Stage1Cfg(
        data=ANIMALS, autoencoder=replace(SMALL_VAE, latent_channels=2), optim=OptimCfg(lr=2e-3), ema=0.99,
        train=TrainerCfg(max_steps=420, val_every=210),
    )


def stage1_animals() -> Stage1Cfg:
    """32x32 silhouettes of ten animals: a slimmer autoencoder than the quickstart's, trained for longer."""
    return replace(stage1_animals_tiny(), autoencoder=LEAN_VAE, train=TrainerCfg(max_steps=2000, val_every=400))


def stage1_icons() -> Stage1Cfg:
    """28,046 captioned 64x64 icons."""
    return Stage1Cfg(
        data=replace(ICONS, batch_size=256), autoencoder=SLIM_VAE, optim=OptimCfg(lr=2e-3),
        train=TrainerCfg(max_steps=1800, val_every=300),
    )


def stage1_icons256() -> Stage1Cfg:
    """The stage 1 of the model icons for icons of 256 pixels, which tests/icons256.py makes: its latents stay, and a
    decoder learns to draw them larger."""
    return Stage1Cfg(
        data=replace(ICONS256, augment=AugmentCfg(hflip=0.5, vflip=0.5, rot90=0.5)), init="icons",
        autoencoder=replace(SLIM_VAE, patch=4), optim=OptimCfg(lr=2e-3), ema=0.995,
        train=TrainerCfg(max_steps=2700, val_every=600),
    )


def stage1_folder() -> Stage1Cfg:
    """Your own masks: set --data.source.train PATH (and --data.image-size)."""
    vae = replace(SMALL_VAE, latent_channels=2)  # docs/results.md, as for animals
    return Stage1Cfg(
        data=FOLDER, autoencoder=vae, optim=OptimCfg(lr=1e-3), train=TrainerCfg(max_steps=3000, val_every=500)
    )


def stage1_mnist() -> Stage1Cfg:
    """torchvision's MNIST as masks, padded to 32x32."""
    return replace(stage1_animals_tiny(), data=MNIST)


def stage1_shards() -> Stage1Cfg:
    """WebDataset shards (scripts.make_shards writes them): set --data.source.train FOLDER."""
    return replace(stage1_folder(), data=SHARDS)


def stage1_rgb() -> Stage1Cfg:
    """Ordinary RGB images from a folder, judged by L1."""
    vae = replace(WIDE_VAE, loss=L1LossCfg(), regulariser=KLCfg(1e-6), latent_channels=8)
    return Stage1Cfg(data=RGB, autoencoder=vae, optim=OptimCfg(lr=5e-4), train=TrainerCfg(max_steps=20000))


def stage2_animals_tiny() -> Stage2Cfg:
    """Stage 2 of the quickstart: about eight minutes on two cores."""
    return Stage2Cfg(
        data=ANIMALS,
        backbone=SMALL_UNET,
        text=TextCfg(max_tokens=16),
        sampler=TRAJECTORY,
        optim=MUON,
        ema=EMACfg(0.998, 0.998),
        train=TrainerCfg(max_steps=1350, val_every=450, quality=0),  # judging would take a tenth of its eight minutes
    )


def stage2_animals() -> Stage2Cfg:
    """32x32 silhouettes of ten animals: a network of fewer operations than the quickstart's, trained longer."""
    return replace(
        stage2_animals_tiny(),
        data=replace(ANIMALS, batch_size=256),
        backbone=LEAN_UNET,
        sampler=LONG_TRAJECTORY,
        optim=OptimCfg(lr=1e-3, warmup_steps=200),
        ema=LONG_EMA,
        train=TrainerCfg(max_steps=8450, val_every=1690),
    )


def stage2_animals_one_step() -> Stage2Cfg:
    """The single step of a model of preset animals (name yours with --init) brought near its four steps
    (docs/results.md)."""
    return replace(
        stage2_animals(),
        init="animals",
        data=replace(ANIMALS, batch_size=256),
        sampler=ONE_STEP_TRAJECTORY,
        optim=OptimCfg(lr=5e-4, warmup_steps=100),
        ema=EMACfg(0.999, 1.0),
        train=TrainerCfg(max_steps=2900, val_every=580),
    )


def stage2_animals_critic() -> Stage2Cfg:
    """The single step of a model of preset animals (name yours with --init) brought near the training masks themselves,
    by a critic (docs/results.md): half an hour on two cores."""
    return with_critic(replace(stage2_animals_one_step(), data=ANIMALS), TrainerCfg(max_steps=4000, val_every=800))


def with_critic(cfg: Stage2Cfg, train: TrainerCfg) -> Stage2Cfg:
    """Averages that stay behind, and rates and moments of both sides, of the presets whose step has a critic."""
    return replace(
        cfg,
        critic=CriticCfg(width=64),
        optim=OptimCfg(lr=3e-5, beta1=0.0, warmup_steps=100),
        ema=EMACfg(0.998, 1.0),
        train=train,
    )


def stage2_icons() -> Stage2Cfg:
    """64x64 icons from any caption; for a GPU."""
    return Stage2Cfg(
        data=replace(ICONS, batch_size=1024),
        backbone=ICON_UNET,
        text=TextCfg(articles=False),
        sampler=replace(LONG_TRAJECTORY, train_guidance=2.5, consistency_weight=4.0),
        optim=OptimCfg(lr=1.5e-3, warmup_steps=300),
        ema=LONG_EMA,
        train=TrainerCfg(max_steps=11500, val_every=1000, log_every=50),
    )


def stage2_icons_sketch() -> Stage2Cfg:
    """An encoder of sketches for the model icons, which stays as it is: three quarters of an hour on two cores."""
    return replace(
        stage2_icons(),
        init="icons",
        data=replace(ICONS, batch_size=128),
        backbone=replace(ICON_UNET, sketch=64),
        sketch=SketchCfg(only=True),
        sampler=replace(
            LONG_TRAJECTORY, train_guidance=2.5, consistency_weight=4.0, begin=0.4, nodes=6, per_path=6
        ),
        optim=ADAMW,
        ema=EMACfg(0.998, 0.998),
        train=TrainerCfg(max_steps=2600, val_every=650, quality=0),
    )


def stage2_icons_critic() -> Stage2Cfg:
    """The single step of a model of preset icons-sketch (name yours with --init), with a sketch and without, brought
    near the training icons themselves, by a critic (docs/results.md): half an hour on two cores."""
    base = replace(stage2_icons_sketch(), data=replace(ICONS, batch_size=64), sketch=SketchCfg(share=0.25))
    return with_critic(base, TrainerCfg(max_steps=1300, val_every=650))


def stage2_icons256() -> Stage2Cfg:
    """The model icons on the latents of icons of 256 pixels, after stage 1 of this name: half an hour on two
    cores."""
    train = TrainerCfg(max_steps=1000, val_every=250, quality=0)
    return replace(stage2_icons_critic(), init="icons", data=ICONS256, train=train)


def stage2_geometry() -> Stage2Cfg:
    """Captions of geometry, such as "three small round blobs, left", in pictures of pieces of icons: an hour on two
    cores. What the quickstart begins with from 64 pixels on for masks without captions of their own."""
    return Stage2Cfg(
        init="icons",
        data=COLLAGES,
        backbone=ICON_UNET,
        text=TextCfg(articles=False),
        sampler=TRAJECTORY,
        optim=ADAMW,
        ema=EMACfg(0.999, 0.998),
        train=TrainerCfg(max_steps=6900, val_every=1150, quality=0),
    )


def stage2_geometry_reader() -> Stage2Cfg:
    """A reader for the model geometry, which stays as it is (name yours with --init): 16 minutes on two
    cores."""
    return replace(
        stage2_geometry(),
        init="geometry",
        reader=ReaderCfg(width=64, only=True),
        optim=OptimCfg(lr=2e-3, warmup_steps=100),
        train=TrainerCfg(max_steps=3000, val_every=1500, quality=0),
    )


def stage2_folder() -> Stage2Cfg:
    """Your own masks: set --data.source.train PATH (and --data.image-size)."""
    return Stage2Cfg(
        data=FOLDER,
        backbone=UNetCfg(width=96, multipliers=(1, 2, 2)),
        sampler=LONG_TRAJECTORY,
        optim=OptimCfg(lr=5e-4, warmup_steps=200),
        ema=LONG_EMA,
        train=TrainerCfg(max_steps=10000, val_every=1000),
    )


def stage2_mnist() -> Stage2Cfg:
    """torchvision's MNIST as masks, with prompts such as "a seven"."""
    train = TrainerCfg(max_steps=1500, val_every=500, quality=0)
    return replace(stage2_animals_tiny(), data=MNIST, optim=ADAMW, train=train)


def stage2_shards() -> Stage2Cfg:
    """WebDataset shards (scripts.make_shards writes them): set --data.source.train FOLDER."""
    return replace(stage2_folder(), data=SHARDS)


def stage2_rgb() -> Stage2Cfg:
    """Ordinary RGB images from a folder."""
    return replace(stage2_folder(), data=RGB, train=TrainerCfg(max_steps=100000, val_every=5000, log_every=100))


STAGE_1: dict[str, Callable[[], Stage1Cfg]] = {
    "animals-tiny": stage1_animals_tiny,
    "animals": stage1_animals,
    "icons": stage1_icons,
    "icons256": stage1_icons256,
    "folder": stage1_folder,
    "mnist": stage1_mnist,
    "shards": stage1_shards,
    "rgb": stage1_rgb,
}
STAGE_2: dict[str, Callable[[], Stage2Cfg]] = {
    "animals-tiny": stage2_animals_tiny,
    "animals": stage2_animals,
    "icons": stage2_icons,
    "animals-one-step": stage2_animals_one_step,
    "animals-critic": stage2_animals_critic,
    "icons-sketch": stage2_icons_sketch,
    "icons-critic": stage2_icons_critic,
    "icons256": stage2_icons256,
    "geometry": stage2_geometry,
    "geometry-reader": stage2_geometry_reader,
    "folder": stage2_folder,
    "mnist": stage2_mnist,
    "shards": stage2_shards,
    "rgb": stage2_rgb,
}
