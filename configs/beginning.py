"""What a training begins with: what the model of ``init`` decides, and what cannot be begun at all."""

from dataclasses import replace

from configs.autoencoder_cfg import ImportedCfg, Stage1Cfg
from configs.backbone_cfg import BackboneCfg, UNetCfg
from configs.checks import ConfigError, require
from configs.diffusion_cfg import Stage2Cfg
from configs.sampler_cfg import FlowMapCfg, LagrangianCfg, MeanFlowCfg, TrajectoryCfg


def require_curriculum(cfg: Stage2Cfg) -> None:
    """Raises ConfigError for a curriculum that would change nothing; a config that is only read may hold one."""
    if isinstance(cfg.sampler, FlowMapCfg) and 0 < cfg.sampler.curriculum <= cfg.sampler.begin:
        raise ConfigError(f"sampler.curriculum is {cfg.sampler.curriculum:g}, but no steps are learned before "
                          f"sampler.begin ({cfg.sampler.begin:g}), so that it would change nothing: set it above that, "
                          "or to 0")  # fmt: skip


def require_attention(backbone: BackboneCfg, side: int) -> None:
    """Raises ConfigError where a UNet should attend at some sizes and its latents, of ``side`` at first, have none of
    them; a config that is only read may say so."""
    if not isinstance(backbone, UNetCfg):
        return
    sides = [side // 2**level for level in range(len(backbone.multipliers))]
    if backbone.attention_sizes and not set(sides) & set(backbone.attention_sizes):
        asked, there = (", ".join(map(str, sizes)) for sizes in (backbone.attention_sizes, sides))
        near = [size for size in sides if size <= max(backbone.attention_sizes)] or sides[-1:]
        raise ConfigError(
            f"backbone.attention_sizes is {asked}, but this network's latents have the sides {there}, so that nothing "
            f"would attend to the prompt: add --backbone.attention-sizes {' '.join(map(str, near))}"
        )


def require_startable(cfg: Stage2Cfg) -> None:
    """Raises ConfigError for what only a training with ``init`` can do."""
    require(not cfg.sketch.only, "sketch.only", True, "False without a trained network beside the encoder: "
            "name one with --init")  # fmt: skip
    require(not cfg.reader.only, "reader.only", True, "False without a trained network whose masks the reader looks "
            "at: name one with --init")  # fmt: skip
    require(not cfg.reader.width, "reader.width", cfg.reader.width, "0 in the training of a network: a reader is "
            "trained after it, with --init MODEL --reader.only True")  # fmt: skip
    require(not cfg.critic.width, "critic.width", cfg.critic.width, "0 without a trained network, of which the critic "
            "is made and whose single step it is to better: name one with --init")  # fmt: skip
    require(cfg.ema.teacher_decay < 1, "ema.teacher_decay", cfg.ema.teacher_decay,
            "below 1 where no --init names a model: the teacher would stay as random as it begins")  # fmt: skip
    if isinstance(cfg.sampler, TrajectoryCfg) and cfg.sampler.jumps_at_once:
        raise ConfigError(
            f"sampler.jumps_from is {cfg.sampler.jumps_from:g}, but it must be above sampler.begin "
            f"({cfg.sampler.begin:g}) where no --init names a model that has learned jumps"
        )


def grown(cfg: Stage1Cfg, source: Stage1Cfg) -> Stage1Cfg:
    """``cfg`` with the network of ``source``, the config of the stage 1 that ``cfg.init`` names, for its larger images.

    Raises ConfigError where that cannot grow to them.
    """
    ours, theirs = cfg.data, source.data
    if isinstance(source.autoencoder, ImportedCfg):
        raise ConfigError(f"init is {cfg.init!r}, whose autoencoder is one of diffusers, which cannot grow: name a "
                          "model that was trained here")  # fmt: skip
    require(ours.channels == theirs.channels, "data.channels", ours.channels,
            f"{theirs.channels}, as init {cfg.init!r} has it")
    times = max(1, round(ours.image_size / theirs.image_size))
    require(ours.image_size % theirs.image_size == 0, "data.image_size", ours.image_size,
            f"a multiple of the {theirs.image_size} pixels of init {cfg.init!r}, such as {times * theirs.image_size}")
    own = source.autoencoder
    return replace(cfg, autoencoder=replace(
        cfg.autoencoder, patch=own.patch * times, latent_channels=own.latent_channels, width=own.width,
        multipliers=own.multipliers, blocks=own.blocks, regulariser=own.regulariser,
    ))  # fmt: skip


def taken_over(cfg: Stage2Cfg, source: Stage2Cfg) -> Stage2Cfg:
    """``cfg`` with the network and text settings of ``source``, the config of the model that ``cfg.init`` names.

    Raises ConfigError where that model cannot be begun with as ``cfg`` asks.
    """
    there, asked = source.backbone.sketch, cfg.backbone.sketch
    if asked and there and asked != there:
        raise ConfigError(f"backbone.sketch is {asked}, but the encoder of sketches that init {cfg.init!r} has is of "
                          f"{there} channels: ask for as many")  # fmt: skip
    if cfg.sketch.only and not asked:
        raise ConfigError("sketch.only is True, but there is no encoder of sketches to train: set backbone.sketch, "
                          "such as 64")  # fmt: skip
    require_teacher(cfg, source)
    if not cfg.critic.width and not cfg.reader.only:
        require_inputs(cfg, source)
    own = replace(source.reader, only=False, width=reader_width(cfg, source))
    return going_on(cfg, replace(source, backbone=replace(source.backbone, sketch=asked), reader=own))


def going_on(cfg: Stage2Cfg, begun: Stage2Cfg) -> Stage2Cfg:
    """``cfg`` with what a training that has begun as ``begun`` cannot change any more."""
    return replace(
        cfg, backbone=begun.backbone, text=begun.text, reader=replace(cfg.reader, width=begun.reader.width),
        # The network stays what it is; or where it learns from a critic, its answers mean what they meant.
        sampler=begun.sampler if cfg.reader.only or cfg.critic.width else cfg.sampler,
    )  # fmt: skip


def reader_width(cfg: Stage2Cfg, source: Stage2Cfg) -> int:
    """Of the reader that a training goes on with, or begins. Raises ConfigError where that cannot be."""
    there, asked = source.reader.width, cfg.reader.width
    if asked and there and asked != there:
        raise ConfigError(f"reader.width is {asked}, but the reader that init {cfg.init!r} has is of {there}: ask for "
                          "as many")  # fmt: skip
    if cfg.reader.only and not asked and not there:
        raise ConfigError(f"reader.only is True, but init {cfg.init!r} has no reader to train on: set reader.width, "
                          "such as 64, to begin one")  # fmt: skip
    if asked and not there and not cfg.reader.only:
        raise ConfigError(f"reader.width is {asked}, but init {cfg.init!r} has no reader, and it is trained after the "
                          "network, with reader.only True: leave it at 0 here")  # fmt: skip
    return there or asked


def require_inputs(cfg: Stage2Cfg, source: Stage2Cfg) -> None:
    """Raises ConfigError where the network of ``cfg.init`` does not take what the objective of ``cfg`` asks it."""
    if isinstance(cfg.sampler, FlowMapCfg):
        require(cfg.sampler.most_guidance == 0 or source.backbone.guidance_input, "sampler.most_guidance",
                cfg.sampler.most_guidance, f"0, since the network of init {cfg.init!r} has no input for guidance")
    if isinstance(cfg.sampler, (MeanFlowCfg, LagrangianCfg)):
        fastest, theirs = 1 / cfg.sampler.probe, source.backbone.fastest_rate
        require(theirs <= fastest, "init", cfg.init, f"a model whose backbone.fastest_rate is at most 1/sampler.probe "
                f"({fastest:g}) for objectives that differentiate in time, and that of this one is {theirs:g}")


def require_teacher(cfg: Stage2Cfg, source: Stage2Cfg) -> None:
    """Raises ConfigError where the model of ``cfg.init`` cannot teach what it is asked for from the first step on."""
    learned = source.sampler
    if cfg.critic.width and cfg.backbone.sketch and not source.backbone.sketch:
        raise ConfigError(f"backbone.sketch is {cfg.backbone.sketch}, but init {cfg.init!r} reads no sketches: add "
                          "--backbone.sketch 0, or train its encoder of them first (--sketch.only True)")  # fmt: skip
    if cfg.ema.teacher_decay == 1 and cfg.backbone.sketch and not source.backbone.sketch:
        raise ConfigError(f"ema.teacher_decay is 1, but init {cfg.init!r} reads no sketches and would teach to leave "
                          "them aside: train its encoder with a decay below 1")  # fmt: skip
    if cfg.critic.width and not isinstance(learned, FlowMapCfg):
        raise ConfigError(f"critic.width is {cfg.critic.width}, but init {cfg.init!r} was trained with "
                          f"{type(learned).__name__}, which learns no jumps, and the critic looks at masks of a single "
                          "one: name another model")  # fmt: skip
    if cfg.critic.width or not isinstance(cfg.sampler, TrajectoryCfg) or not cfg.sampler.jumps_at_once:
        return
    if not isinstance(learned, FlowMapCfg):
        raise ConfigError(f"sampler.jumps_from is {cfg.sampler.jumps_from:g}, but init {cfg.init!r} was trained with "
                          f"{type(learned).__name__}, which learns no jumps: set it above sampler.begin "
                          f"({cfg.sampler.begin:g})")  # fmt: skip
    for name in ("train_guidance", "most_guidance"):
        own, theirs = getattr(cfg.sampler, name), getattr(learned, name)
        require(own == theirs, f"sampler.{name}", own, f"{theirs:g}, which the jumps of init {cfg.init!r} hold")
