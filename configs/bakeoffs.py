"""Plans of comparisons: each is a function that returns named pairs of stages. Add your own beside them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from configs.autoencoder_cfg import KLCfg, Stage1Cfg, VarianceExpansionCfg
from configs.backbone_cfg import Backbone, DiTCfg
from configs.diffusion_cfg import EMACfg, Stage2Cfg, TextCfg
from configs.presets import (
    ADAMW,
    ANIMALS,
    ICONS,
    LEAN_UNET,
    LEAN_VAE,
    SHORTCUT,
    SMALL_UNET,
    SMALL_VAE,
    TRAJECTORY,
    stage1_animals,
    stage1_animals_tiny,
    stage2_animals_tiny,
)
from configs.sampler_cfg import (
    FlowCfg,
    FlowMapCfg,
    IMFCfg,
    LagrangianCfg,
    MeanFlowCfg,
    Sampler,
    ShortcutCfg,
    SoFlowCfg,
    SplitCfg,
    TrajectoryCfg,
)
from configs.trainer_cfg import OptimCfg, TrainerCfg

M = TypeVar("M", bound=FlowMapCfg)
# What the tables were made with: four latent channels, 500 steps.
STAGE_1 = replace(stage1_animals(), autoencoder=SMALL_VAE, train=TrainerCfg(max_steps=500, val_every=100))


@dataclass(frozen=True)
class Entrant:
    """One competitor: both stages, and with which guidance its masks are judged."""

    stage_2: Stage2Cfg
    stage_1: Stage1Cfg
    guidance: tuple[float, ...] = (1.0,)


def as_shortcut(cfg: M) -> M:
    """Another objective with the rows, weights and guidance of the presets' shortcut."""
    return replace(
        cfg, share=SHORTCUT.share, every=SHORTCUT.every, train_guidance=SHORTCUT.train_guidance,
        loss_power=SHORTCUT.loss_power, consistency_weight=SHORTCUT.consistency_weight,
    )


def quickstart() -> Stage2Cfg:
    """Its stage 2 with the optimiser of docs/results.md's tables."""
    return replace(stage2_animals_tiny(), optim=ADAMW)


def shortcut_base() -> Stage2Cfg:
    """The quickstart's stage 2 with the shortcut objective and the fast teacher that it needs."""
    return replace(quickstart(), sampler=SHORTCUT, ema=EMACfg(0.998, 0.95))


def objectives() -> dict[str, Entrant]:
    """What the network learns, on animals32 with the quickstart's network."""
    base = shortcut_base()
    paper = ShortcutCfg(share=0.25, every=1)
    entries: dict[str, Sampler] = {
        "shortcut": SHORTCUT,
        "soflow": as_shortcut(SoFlowCfg(data_velocity=0.25)),
        "imf": as_shortcut(IMFCfg()),
        "lagrangian": as_shortcut(LagrangianCfg()),
        "shortcut-continuous": replace(SHORTCUT, continuous=True, jumps="log"),
        "split": as_shortcut(SplitCfg()),
        "alpha-flow": as_shortcut(
            SoFlowCfg(data_velocity=0.25, schedule="sigmoid", first_part=1.0, last_part=0.005)
        ),
        "meanflow": as_shortcut(MeanFlowCfg()),
    }
    found = {
        "flow": Entrant(replace(base, sampler=FlowCfg()), STAGE_1, (1.0, 2.0)),
        "shortcut-paper": Entrant(replace(base, sampler=paper, ema=EMACfg(base.ema.decay, 0.999)), STAGE_1),
    }
    found["trajectory"] = Entrant(quickstart(), STAGE_1)
    for name, sampler in entries.items():
        smooth = isinstance(sampler, (MeanFlowCfg, LagrangianCfg))  # they differentiate in time
        backbone = replace(base.backbone, fastest_rate=50.0) if smooth else base.backbone
        found[name] = Entrant(replace(base, sampler=sampler, backbone=backbone), STAGE_1)
    return found


def parts() -> dict[str, Entrant]:
    """The shortcut objective with one thing changed at a time."""
    base = shortcut_base()
    changed: dict[str, ShortcutCfg] = {
        "shortcut": SHORTCUT,
        "no-guidance": replace(SHORTCUT, train_guidance=1.0),
        "plain-error": replace(SHORTCUT, loss_power=0.0),
        "plain-flow-error": replace(SHORTCUT, flow_power=0.0),
        "begin-half": replace(SHORTCUT, begin=0.5, share=0.25),
        "begin-half-bias": replace(SHORTCUT, begin=0.5, share=0.25, ladder_bias=0.3),
        "begin-late": replace(SHORTCUT, begin=0.7, share=0.375),
        "pairing": replace(SHORTCUT, pairing="prompt"),
        "plug-in": replace(SHORTCUT, plug_in=0.5),
        "curriculum": replace(SHORTCUT, curriculum=0.3),
        "bands-uniform": replace(SHORTCUT, bands="uniform"),
        "bands-hf": replace(SHORTCUT, bands="hf"),
        "bands-whiten": replace(SHORTCUT, bands="whiten"),
        "prediction-x": replace(SHORTCUT, prediction="x"),
        "ladder-bias": replace(SHORTCUT, ladder_bias=0.3),
        "share-0.25": replace(SHORTCUT, share=0.25),
    }
    found = {name: Entrant(replace(base, sampler=sampler), STAGE_1) for name, sampler in changed.items()}
    for decay in (0.0, 0.8, 0.99, 0.999):
        found[f"teacher-{decay:g}"] = Entrant(replace(base, ema=EMACfg(base.ema.decay, decay)), STAGE_1)
    return found


def late() -> dict[str, Entrant]:
    """Self-consistency that begins late, from the network's own jumps (shortcut) or from whole paths (trajectory)."""
    base = quickstart()
    shortcut = replace(SHORTCUT, train_guidance=1.5, begin=0.7, share=0.375)
    path = TrajectoryCfg(
        train_guidance=1.5, begin=0.7, share=0.375, loss_power=0.5, consistency_weight=2.0, one_step_atom=0.25
    )
    path_2 = replace(path, train_guidance=2.0)
    fast: dict[str, FlowMapCfg] = {
        "late": shortcut,
        "late-w2": replace(shortcut, train_guidance=2.0),
        "later": replace(shortcut, begin=0.8, share=0.45),
        "late-pair": replace(shortcut, pairing="prompt"),
        "late-x": replace(shortcut, prediction="x"),
        "late-p1": replace(shortcut, loss_power=1.0, flow_power=0.5),
        "soflow-late": SoFlowCfg(
            train_guidance=1.5, begin=0.7, share=0.375, loss_power=0.5, data_velocity=0.25, first_part=0.25,
            last_part=0.05,
        ),
    }
    slow: dict[str, FlowMapCfg] = {
        "late-slow": shortcut,
        "traj": path,
        "traj-later": replace(path, begin=0.8, share=0.45),
        "traj-16": replace(path, nodes=16, per_path=8),
        "traj-p1": replace(path, loss_power=1.0, flow_power=0.5),
        "traj-w2": path_2,
        "w2-half": replace(path_2, begin=0.5, share=0.3),
        "w2-atom": replace(path_2, one_step_atom=0.5),
        "w2-p1": replace(path_2, loss_power=1.0, flow_power=0.5),
        "w2-cw4": replace(path_2, consistency_weight=4.0),
    }
    combo = replace(path_2, one_step_atom=0.5, consistency_weight=4.0, loss_power=1.0, flow_power=0.5)
    slow |= {"combo": combo, "combo6": replace(combo, nodes=6, per_path=6)}
    found = {"flow": Entrant(replace(base, sampler=FlowCfg()), STAGE_1, (1.5,))}
    for kinds, teacher in ((fast, 0.95), (slow, 0.998)):
        for name, sampler in kinds.items():
            found[name] = Entrant(replace(base, sampler=sampler, ema=EMACfg(0.998, teacher)), STAGE_1)
    return found


def finish() -> dict[str, Entrant]:
    """The preset, and the same with paths of jumps towards the end."""
    base = quickstart()
    samplers = {
        "trajectory": TRAJECTORY,
        "jumps": replace(TRAJECTORY, jumps_from=0.8, jump_per_path=3),
        "jumps-sooner": replace(TRAJECTORY, begin=0.6, jumps_from=0.75, jump_per_path=3),
    }
    return {name: Entrant(replace(base, sampler=sampler), STAGE_1) for name, sampler in samplers.items()}


def networks() -> dict[str, Entrant]:
    """Wavelet UNet (with gates and band skips, and without), convolutional UNet and DiT under the same objective."""
    base = quickstart()
    unet = replace(SMALL_UNET, gates=True, band_skips=True)
    nets: dict[str, Backbone] = {
        "wavelet": unet,
        "conv-equal-parameters": replace(unet, resample="conv", conv_kernel=3),
        "conv-equal-flops": replace(unet, resample="conv", conv_kernel=2),
        "no-gates": replace(unet, gates=False),
        "no-band-skips": replace(unet, band_skips=False),
        "plain-haar": replace(unet, gates=False, band_skips=False),
        "sum": replace(unet, gate="sum"),
        "dit": DiTCfg(width=192, depth=6, patch_size=2),
        "dit-wavelet": DiTCfg(width=192, depth=6, patch_size=2, patch="wavelet"),
    }
    return {name: Entrant(replace(base, backbone=net), STAGE_1) for name, net in nets.items()}


def latents() -> dict[str, Entrant]:
    """What the latent space of stage 1 does to one-step masks."""
    base = quickstart()
    vae = SMALL_VAE
    spaces = {
        "f4-kl-1e-2": vae,
        "f4-kl-1e-3": replace(vae, regulariser=KLCfg(1e-3)),
        "f4-kl-1e-6": replace(vae, regulariser=KLCfg(1e-6)),
        "f4-variance-expansion": replace(vae, regulariser=VarianceExpansionCfg()),
        "f4-equivariance": replace(vae, equivariance=0.5),
        "f2": replace(vae, multipliers=(1, 4)),
        "f8": replace(vae, multipliers=(1, 4, 8, 8), latent_channels=16),
        "f4-2-channels": replace(vae, latent_channels=2),
        "f4-8-channels": replace(vae, latent_channels=8),
    }
    found = {name: Entrant(base, replace(STAGE_1, autoencoder=space)) for name, space in spaces.items()}
    attends_at_8 = replace(base, backbone=replace(SMALL_UNET, attention_sizes=(8,)))  # its latents are 16x16 and 8x8
    return found | {"f2": replace(found["f2"], stage_2=attends_at_8)}


def cheaper() -> dict[str, Entrant]:
    """What would make a training step or a mask of the quickstart cheaper: fewer channels where there are many pixels
    (8x8, 4x4 and 2x2 latent pixels cost 16 : 4 : 1), a slimmer autoencoder."""
    base, stage_1 = quickstart(), stage1_animals_tiny()
    narrow = replace(SMALL_UNET, width=32, blocks=1)
    nets = {
        "64-128": SMALL_UNET,
        "32-160": replace(narrow, multipliers=(1, 5), blocks=2),
        "32-192": replace(narrow, multipliers=(1, 6)),
        "32-128-192": replace(narrow, multipliers=(1, 4, 6), attention_sizes=(4, 2)),
        "64-128-192": LEAN_UNET,
    }
    found = {name: Entrant(replace(base, backbone=net), stage_1) for name, net in nets.items()}
    lean = replace(stage_1, autoencoder=LEAN_VAE)
    return found | {"lean-autoencoder": Entrant(base, lean)}


def few() -> dict[str, Entrant]:
    """Channels of the latent and weight of the KL term where there are 900 masks, as the quickstart may be given."""
    data = replace(ANIMALS, val_fraction=0.9)
    base = replace(quickstart(), data=data)
    found = {}
    for channels in (4, 2):
        for weight in (1e-2, 1e-6):
            vae = replace(SMALL_VAE, latent_channels=channels, regulariser=KLCfg(weight))
            stage_1 = replace(stage1_animals_tiny(), data=data, autoencoder=vae)
            found[f"{channels}-channels-kl-{weight:.0e}"] = Entrant(base, stage_1)
    return found


def icons() -> dict[str, Entrant]:
    """Objectives, networks and latent spaces on 64x64 icons; each changes one thing of the first."""
    data = replace(ICONS, batch_size=64)
    unet = replace(SMALL_UNET, attention_sizes=(8,))  # the lower of its two sizes, as with animals
    base = replace(quickstart(), data=data, text=TextCfg(articles=False), backbone=unet)
    train = TrainerCfg(max_steps=400, val_every=400)
    stage_1 = Stage1Cfg(data=data, autoencoder=SMALL_VAE, optim=OptimCfg(lr=2e-3), ema=0.99, train=train)
    paper = replace(base, sampler=ShortcutCfg(share=0.25, every=1), ema=EMACfg(base.ema.decay, 0.999))
    nets: dict[str, Backbone] = {
        "conv-equal-flops": replace(unet, resample="conv", conv_kernel=2),
        "dit": DiTCfg(width=192, depth=6, patch_size=2),
    }
    shrunk = replace(SMALL_VAE, multipliers=(1, 4, 8, 8))
    spaces = {
        "2-channels": replace(SMALL_VAE, latent_channels=2),
        "f8": shrunk,
        "f8-8-channels": replace(shrunk, latent_channels=8),
    }
    found = {"trajectory": Entrant(base, stage_1), "shortcut-paper": Entrant(paper, stage_1)}
    found["flow"] = Entrant(replace(base, sampler=FlowCfg()), stage_1, (1.0, 2.0))
    found |= {name: Entrant(replace(base, backbone=net), stage_1) for name, net in nets.items()}
    for name, space in spaces.items():
        sized = replace(base, backbone=SMALL_UNET) if space.factor == 8 else base
        found[name] = Entrant(sized, replace(stage_1, autoencoder=space))
    return found


PLANS: dict[str, Callable[[], dict[str, Entrant]]] = {
    "objectives": objectives, "parts": parts, "late": late, "finish": finish, "networks": networks, "latents": latents,
    "cheaper": cheaper, "few": few, "icons": icons,
}
