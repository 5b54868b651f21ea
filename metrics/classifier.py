"""A small classifier of masks: its features give the Frechet distance, its answers the prompt accuracy.

It is trained by ``scripts.evaluate`` on the training split alone, in about a minute on two CPU cores, so that judging a
model needs no download and no network that was made for photographs.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from configs.whole_file import write_whole

FORMAT = 1
FEATURES = 64
LARGEST = 64
PAUSE_EVERY = 50


class MaskClassifier(nn.Module):
    """Binary masks [B,1,H,W] -> one logit per label; 64 features before the last layer."""

    def __init__(self, labels: list[str]) -> None:
        super().__init__()
        self.labels = list(labels)
        self.index = {label: i for i, label in enumerate(self.labels)}
        # Half the size after every second convolution: on masks, coarse shape matters more than texture.
        self.body = nn.Sequential(
            _block(1, 24), _block(24, 32, stride=2), _block(32, 48), _block(48, 64, stride=2),
            _block(64, 96), _block(96, 96, stride=2),
        )
        self.squeeze = nn.Sequential(nn.Linear(96 * 4, FEATURES), nn.BatchNorm1d(FEATURES), nn.ReLU())
        self.head = nn.Linear(FEATURES, len(self.labels))

    def features(self, x: Tensor) -> Tensor:
        """[B,1,H,W] masks of 0 and 1 -> [B,64]; larger ones are seen as grey ones of LARGEST pixels a side."""
        x = F.adaptive_avg_pool2d(x, LARGEST) if x.shape[-1] > LARGEST else x
        h = self.body(x * 2 - 1)                                                # [B,96,H/8,W/8]
        h = F.adaptive_avg_pool2d(h, 2)                                         # [B,96,2,2]
        return self.squeeze(h.flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        """[B,1,H,W] masks of 0 and 1 -> [B,K] logits."""
        return self.head(self.features(x))


def _block(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU())


def train_classifier(
    images: Tensor, prompts: list[str], *, steps: int = 1000, batch_size: int = 128, lr: float = 3e-3, seed: int = 0,
    progress: bool = True, pause: Callable[[], None] = lambda: None,
) -> MaskClassifier:
    """Train on masks [N,H,W] uint8 of 0 and 1, whose prompts are the labels; the result is in eval mode.

    The caller's random state is left alone, and one seed gives one classifier on one machine. ``pause`` is called after
    every ``PAUSE_EVERY`` steps.
    """
    # also during a validation, where gradients are off
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)
        net = MaskClassifier(sorted(set(prompts))).to(memory_format=torch.channels_last)
        order = torch.Generator().manual_seed(seed)
        labels = torch.tensor([net.index[p] for p in prompts])
        optimiser = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.05)
        warm = 0.2 if steps != 5 else 0.3  # torch divides by 0.2 * steps - 1
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps, pct_start=warm)
        net.train()
        for step in tqdm(range(1, steps + 1), desc="classifier", disable=not progress, leave=False):
            rows = torch.randint(len(images), (min(batch_size, len(images)),), generator=order)
            x = jitter(images[rows], order)[:, None].float()
            with torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bf16()):
                logits = net(x.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), labels[rows], label_smoothing=0.1)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            if step % PAUSE_EVERY == 0:
                pause()
    return net.eval()


def jitter(masks: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the masks [B,H,W] and shift each by up to 1/16 of its size, filling with background."""
    b, height, width = masks.shape
    reach = max(1, min(height, width) // 16)
    flip = torch.rand(b, generator=generator) < 0.5
    masks = torch.where(flip[:, None, None], masks.flip(-1), masks)
    padded = F.pad(masks, (reach, reach, reach, reach))
    top, left = torch.randint(2 * reach + 1, (2, b), generator=generator)
    rows = top[:, None] + torch.arange(height)                                  # [B,H]
    cols = left[:, None] + torch.arange(width)                                  # [B,W]
    return padded[torch.arange(b)[:, None, None], rows[:, :, None], cols[:, None, :]]


@torch.inference_mode()
def look(net: MaskClassifier, masks: Tensor, batch_size: int = 512) -> tuple[Tensor, Tensor]:
    """Features [N,64] and logits [N,K], in fp32, of masks [N,H,W] (uint8 or bool)."""
    parts = [net.features(part[:, None].float()) for part in masks.split(batch_size)]
    features = torch.cat(parts)
    return features, net.head(features)


def accuracy(net: MaskClassifier, logits: Tensor, prompts: list[str]) -> float:
    """Share of logits [N,K] whose largest entry is the prompt's label; a prompt that was never trained on is a miss."""
    truth = torch.tensor([net.index.get(p, -1) for p in prompts])
    return float((logits.argmax(1) == truth).double().mean())


def save_classifier(net: MaskClassifier, path: Path, image_size: int) -> None:
    """Weights, labels and the size of the masks it was trained on, readable with ``weights_only=True``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"format": FORMAT, "labels": net.labels, "image_size": image_size, "state": net.state_dict()}
    write_whole(path, lambda file: torch.save(content, file))


def load_classifier(path: Path) -> tuple[MaskClassifier, int]:
    """A saved classifier in eval mode, and the size of the masks it was trained on.

    Raises:
        ValueError: if the file is not a classifier of this format.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if saved["format"] != FORMAT:
            raise ValueError(f"format {saved['format']}")
        net = MaskClassifier(saved["labels"])
        net.load_state_dict(saved["state"])
        # The format it was trained in, so that it also rounds as it did then.
        return net.to(memory_format=torch.channels_last).eval(), int(saved["image_size"])
    except (OSError, ValueError):
        raise
    except Exception as error:
        raise ValueError(f"{path} is not a classifier that --classifier saved") from error


def multiplies_bf16() -> bool:
    """True where the CPU multiplies bf16 matrices in hardware (torch has no public name for the question yet)."""
    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return bool(torch.backends.mkldnn.is_available() and has_amx())
