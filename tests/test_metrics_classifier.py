import pytest
import torch

from metrics.classifier import FEATURES, accuracy, jitter, load_classifier, look, save_classifier, train_classifier
from metrics.judge import classifier_judge, encoder_judge, is_classes


@pytest.fixture(scope="module")
def squares_and_bars() -> tuple[torch.Tensor, list[str]]:
    """[120,16,16] uint8: filled squares and lying bars at random places."""
    g = torch.Generator().manual_seed(0)
    images = torch.zeros(120, 16, 16, dtype=torch.uint8)
    for i in range(120):
        height, width = (6, 6) if i % 2 else (2, 11)
        y, x = (int(torch.randint(16 - side, (), generator=g)) for side in (height, width))
        images[i, y : y + height, x : x + width] = 1
    return images, ["a square" if i % 2 else "a bar" for i in range(120)]


@pytest.fixture(scope="module")
def net(squares_and_bars):
    images, prompts = squares_and_bars
    return train_classifier(images[:80], prompts[:80], steps=40, batch_size=32, progress=False)


def test_it_tells_squares_from_bars_that_it_has_not_seen(net, squares_and_bars):
    images, prompts = squares_and_bars
    features, logits = look(net, images[80:])
    assert features.shape == (40, FEATURES)
    assert accuracy(net, logits, prompts[80:]) >= 0.95
    assert accuracy(net, logits, ["never seen"] * 40) == 0


@pytest.mark.parametrize("steps", range(1, 9))
def test_it_learns_in_any_number_of_steps(steps, squares_and_bars):
    images, prompts = squares_and_bars
    few = train_classifier(images[:8], prompts[:8], steps=steps, batch_size=8, progress=False)
    assert all(weight.isfinite().all() for weight in few.parameters())


def test_features_do_not_depend_on_the_batch(net, squares_and_bars):
    images, _ = squares_and_bars
    torch.testing.assert_close(look(net, images[:9])[0], look(net, images[:9], batch_size=2)[0], rtol=1e-4, atol=1e-5)


def test_training_leaves_the_random_state_of_the_caller_alone(squares_and_bars):
    images, prompts = squares_and_bars
    before = torch.get_rng_state()
    train_classifier(images, prompts, steps=2, progress=False)
    assert torch.equal(before, torch.get_rng_state())


def test_jitter_moves_a_mask_and_keeps_it_binary():
    masks = torch.zeros(50, 32, 32, dtype=torch.uint8)
    masks[:, 10:20, 12:14] = 1
    moved = jitter(masks, torch.Generator().manual_seed(0))
    assert set(moved.unique().tolist()) == {0, 1}
    assert moved.sum((1, 2)).tolist() == [20] * 50
    assert len({tuple(mask.flatten().tolist()) for mask in moved}) > 10


def test_a_saved_classifier_answers_as_before_and_foreign_files_are_refused(net, squares_and_bars, tmp_path):
    images, prompts = squares_and_bars
    path = tmp_path / "judges" / "net.pt"
    save_classifier(net, path, 16)
    again, size = load_classifier(path)
    assert size == 16
    torch.testing.assert_close(look(net, images)[1], look(again, images)[1], rtol=1e-4, atol=1e-5)
    judge = classifier_judge(images, prompts, steps=1, seed=0, path=path)
    assert judge.score is not None
    assert judge.score(judge.view(images)[1], prompts) >= 0.95
    with pytest.raises(ValueError, match="other data"):
        classifier_judge(images, ["another", "word"] * 60, steps=1, seed=0, path=path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="not a classifier"):
        load_classifier(path)


def test_captions_that_differ_are_no_classes_and_the_encoder_sees_masks_instead():
    assert is_classes(["a", "b"] * 2)
    assert not is_classes(["a", "b", "b"])  # a class of one mask teaches nothing
    assert not is_classes([str(i) for i in range(150)])
    assert not is_classes(["only one"] * 9)
    assert not is_classes([str(i) for i in range(201)] * 2)

    class Encoder(torch.nn.Conv2d):
        def to_latent(self, x: torch.Tensor) -> torch.Tensor:
            return self(x)

    judge = encoder_judge(Encoder(1, 3, 4, stride=4))
    features, logits = judge.view(torch.ones(5, 32, 32, dtype=torch.uint8))
    assert features.shape == (5, 3 * 4 * 4)
    assert logits is None
    assert judge.score is None
