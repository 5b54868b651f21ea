"""What draws masks from prompts, without what trains it: importing Lightning takes longer than drawing a mask."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from configs.autoencoder_cfg import Stage1Cfg
from configs.cli import from_dict
from configs.diffusion_cfg import Stage2Cfg
from configs.whole_file import file_hash
from metrics.grammar import WORDS
from models import build_backbone
from models.checkpoint import read_checkpoint, whole
from models.codec import Autoencoder
from models.export import KEY, MAKE, averaged, with_twins
from models.folded import keep_folded
from models.parts import is_parts
from models.reader import Reader
from models.text import TextEncoder
from samplers import build_sampler
from samplers.generates import Generates


class MaskModel(Generates, nn.Module):
    """The averaged network, the autoencoder and the text encoder of a trained stage 2, in eval mode."""

    def __init__(self, cfg: Stage2Cfg, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.cfg = cfg
        self.autoencoder = autoencoder
        self.latent_shape = autoencoder.latent_shape
        self.sampler = build_sampler(cfg.sampler)
        self.encode_text = TextEncoder(cfg.text)
        self.average = build_backbone(cfg.backbone, self.latent_shape, self.encode_text.features, cfg.text.width)
        self.reader = None
        if cfg.reader.width:
            self.reader = Reader(self.latent_shape, [len(words) for words in WORDS], cfg.reader.width)
        self.sha256 = ""  # of the file that it was read from
        self.eval().requires_grad_(False)


def load_mask_model(path: str | Path, device: str | torch.device = "cpu", bf16: bool = False) -> MaskModel:
    """The model of a stage-2 checkpoint or export on ``device``. Raises CheckpointError.

    ``bf16``: for drawing in bfloat16 only, with the weights that autocast would convert at every call converted once.
    """
    there = Path(path).is_file() or is_parts(Path(path))
    digest = file_hash(path) if there else ""  # first: a running training may soon put another file there
    content = read_checkpoint(path, "diffusion", MAKE)
    about = content[KEY]
    with whole(path, MAKE):
        autoencoder = Autoencoder(from_dict(Stage1Cfg, about["autoencoder"]))
        model = MaskModel(from_dict(Stage2Cfg, about["config"]), autoencoder)
        model.sha256 = digest
        state = with_twins(averaged(content["state_dict"], torch.float32))
        twins = [name for name in state if name.startswith(("net.", "teacher."))]  # training needs them
        model.load_state_dict({name: value for name, value in state.items() if name not in twins})
    for layer in model.modules() if bf16 else ():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.to(torch.bfloat16)
    keep_folded(model)
    return model.to(device).to(memory_format=torch.channels_last)  # the faster one to draw with
