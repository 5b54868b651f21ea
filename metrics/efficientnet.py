"""EfficientNet-Lite0 up to its last block with 112 channels, as a feature network for masks.

Architecture: Tan & Le 2019 without squeeze-and-excitation and with ReLU6 ("Lite"), eps 1e-3 in batch normalisation and
padding as TensorFlow pads ("same": the odd pixel goes right and below), because the weights come from there. Trained on
photographs (ImageNet), it is far from home on masks: use its numbers only to rank models of the same masks.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEATURES = 112
BLOCKS = (  # kernel, stride, expansion, channels in, channels out
    (3, 1, 1, 32, 16), (3, 2, 6, 16, 24), (3, 1, 6, 24, 24), (5, 2, 6, 24, 40), (5, 1, 6, 40, 40), (3, 2, 6, 40, 80),
    (3, 1, 6, 80, 80), (3, 1, 6, 80, 80), (5, 1, 6, 80, 112), (5, 1, 6, 112, 112), (5, 1, 6, 112, 112),
)  # fmt: skip


class SameConv(nn.Conv2d):
    """A convolution without bias whose result has ceil(size / stride) pixels, padded as TensorFlow's "same"."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(channels, out, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,H,W] -> [B,C',ceil(H/s),ceil(W/s)]."""
        step, kernel = self.stride[0], self.kernel_size[0]
        high, wide = (max((-(-size // step) - 1) * step + kernel - size, 0) for size in x.shape[-2:])
        x = F.pad(x, (0, wide % 2, 0, high % 2))
        return F.conv2d(x, self.weight, None, self.stride, (high // 2, wide // 2), groups=self.groups)


class Block(nn.Module):
    """Inverted residual: 1x1 to more channels, a depthwise convolution, 1x1 back, and the input where it fits."""

    def __init__(self, kernel: int, stride: int, expansion: int, channels: int, out: int) -> None:
        super().__init__()
        wide = channels * expansion
        # The names are those of the weight file, so that it loads strictly.
        if expansion > 1:
            self._expand_conv = SameConv(channels, wide, 1)
            self._bn0 = nn.BatchNorm2d(wide, eps=1e-3)
        self._depthwise_conv = SameConv(wide, wide, kernel, stride, groups=wide)
        self._bn1 = nn.BatchNorm2d(wide, eps=1e-3)
        self._project_conv = SameConv(wide, out, 1)
        self._bn2 = nn.BatchNorm2d(out, eps=1e-3)
        self.expands, self.adds = expansion > 1, stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,H,W] -> [B,C',H/s,W/s]."""
        h = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        h = F.relu6(self._bn1(self._depthwise_conv(h)))
        h = self._bn2(self._project_conv(h))
        return x + h if self.adds else h


class EfficientNetLite0(nn.Module):
    """Pictures [B,3,H,W] in [0,255] -> [B,112,H/16,W/16]."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv(3, 32, 3, 2)
        self._bn0 = nn.BatchNorm2d(32, eps=1e-3)
        self._blocks = nn.ModuleList(Block(*shape) for shape in BLOCKS)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - 127) / 128                                                     # what the Lite networks were trained on
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return x

    def load(self, state: dict[str, Tensor]) -> "EfficientNetLite0":
        """Take this part's weights out of the whole network's; strictly, so nothing of this part may be missing.

        Raises:
            ValueError: they are those of another network.
        """
        ours = ("_conv_stem.", "_bn0.", *(f"_blocks.{i}." for i in range(len(BLOCKS))))
        try:
            self.load_state_dict({name: value for name, value in state.items() if name.startswith(ours)})
        except RuntimeError as error:
            raise ValueError("these weights are not those of EfficientNet-Lite0") from error
        return self.eval()


@torch.inference_mode()
def lite0_features(net: EfficientNetLite0, masks: Tensor, size: int = 128, batch_size: int = 32) -> Tensor:
    """[N,112] float32 on the CPU: mean over places of what the network sees in masks [N,H,W] of 0 and 1.

    A mask becomes a grey picture of 0 and 255, resized to ``size`` pixels (bilinear, antialiased).
    """
    device = next(net.parameters()).device
    parts = [torch.empty(0, FEATURES)]
    for part in masks.split(batch_size):
        x = part[:, None].float().to(device) * 255                              # [B,1,H,W]
        x = F.interpolate(x, (size, size), mode="bilinear", antialias=True).clamp(0, 255).expand(-1, 3, -1, -1)
        x = x.contiguous(memory_format=torch.channels_last)
        parts.append(net(x).mean((2, 3)).cpu())
    return torch.cat(parts)
