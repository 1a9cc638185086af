"""The label classifier and the files that it loads from."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from generative.judges.label_classifier import LabelClassifier, load_label_classifier
from generative.weights import weights_hash


@pytest.fixture
def published() -> nn.Module:
    """A network built as the published evaluator is, with statistics that are not the initial ones."""
    torch.manual_seed(0)
    network = resnet18(weights=None)
    network.fc = nn.Sequential(nn.Linear(512, 24), nn.Sigmoid())
    network.train()(torch.randn(8, 3, 64, 64))
    return network.eval()


def images(size: int = 64, channels: int = 3) -> torch.Tensor:
    return torch.rand(4, channels, size, size, generator=torch.Generator().manual_seed(3)) * 2 - 1


def test_the_public_layout_loads_and_answers_alike(published: nn.Module, tmp_path: Path) -> None:
    torch.save({"model": published.state_dict(), "epoch": 3}, tmp_path / "checkpoint.pth")
    classifier = load_label_classifier(tmp_path / "checkpoint.pth")
    assert not classifier.training
    assert not any(p.requires_grad for p in classifier.parameters())
    assert (classifier.num_labels, classifier.input_size, classifier.in_channels) == (24, 64, 3)
    with torch.no_grad():
        torch.testing.assert_close(classifier(images()), published(images()))
    assert torch.equal(classifier.logits(images()).sigmoid(), classifier(images()))


def test_fewer_blocks_are_those_of_a_resnet18_left_out(published: nn.Module) -> None:
    classifier = LabelClassifier(blocks=[1, 1, 1, 1]).eval()
    fewer = {name: p for name, p in published.state_dict().items() if name.split(".")[1] != "1" or "layer" not in name}
    classifier.resnet.load_state_dict(fewer)  # has neither more nor other names
    for stage in (published.layer1, published.layer2, published.layer3, published.layer4):
        stage[1].bn2.weight.data.zero_()  # a block without a branch passes on what it gets, which is not negative
        stage[1].bn2.bias.data.zero_()
    with torch.no_grad():
        torch.testing.assert_close(classifier(images()), published(images()))
    with pytest.raises(ValueError, match=r"network\.blocks=\[1, 1\] must be four numbers"):
        LabelClassifier(blocks=[1, 1])


def test_features_are_what_the_last_layer_sees(published: nn.Module, tmp_path: Path) -> None:
    torch.save({"model": published.state_dict()}, tmp_path / "file")
    classifier = load_label_classifier(str(tmp_path / "file"))
    seen = []
    handle = published.fc.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    published(images())
    handle.remove()
    assert classifier.features(images()).shape == (4, 512)
    torch.testing.assert_close(classifier.features(images()), seen[0].detach())


def test_log_likelihood_counts_present_and_absent_labels() -> None:
    classifier = LabelClassifier(num_labels=5, input_size=32).eval()
    labels = torch.tensor([[1, 0, 0, 0, 1], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
    image = images(32).requires_grad_()
    probability = classifier(image).double()
    expected = torch.where(labels > 0, probability, 1 - probability).log().sum(1)
    actual = classifier.log_likelihood(image, labels)
    torch.testing.assert_close(actual.double(), expected)
    (gradient,) = torch.autograd.grad(actual.sum(), image)
    assert gradient.flatten(1).abs().amax(1).gt(0).all()


def test_images_of_another_size_and_of_one_channel() -> None:
    classifier = LabelClassifier(num_labels=3, input_size=64, in_channels=1).eval()
    small = images(32, channels=1)
    enlarged = nn.functional.interpolate(small, size=(64, 64), mode="bilinear", antialias=True)
    torch.testing.assert_close(classifier(small), classifier(enlarged))
    assert classifier(small).shape == (4, 3)


def test_a_triptych_checkpoint_loads_with_its_averaged_weights(tmp_path: Path) -> None:
    network = LabelClassifier(num_labels=5, input_size=48, in_channels=1, blocks=[1, 2, 1, 1])
    average = {name: torch.full_like(p, 0.25) for name, p in network.named_parameters()}
    checkpoint = {
        "global_step": 7,
        "state_dict": {f"network.{name}": value for name, value in network.state_dict().items()},
        "callbacks": {"EMA": {"num_updates": 7, "average": average}},
        "config": {"network": {"input_size": 48}},
    }
    torch.save(checkpoint, tmp_path / "last.ckpt")
    loaded = load_label_classifier(tmp_path / "last.ckpt")
    assert (loaded.num_labels, loaded.input_size, loaded.in_channels) == (5, 48, 1)
    assert [len(stage) for stage in (loaded.resnet.layer1, loaded.resnet.layer2, loaded.resnet.layer3)] == [1, 2, 1]
    assert all((p == 0.25).all() for p in loaded.parameters())
    assert (loaded.resnet.bn1.running_var == 1).all()
    checkpoint["callbacks"] = {}  # trained without averages
    torch.save(checkpoint, tmp_path / "last.ckpt")
    assert weights_hash(load_label_classifier(tmp_path / "last.ckpt")) == weights_hash(network)
    assert weights_hash(loaded) != weights_hash(network)


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.touch, (self.target,)


def test_files_that_are_no_classifier_are_refused(published: nn.Module, tmp_path: Path) -> None:
    other = published.state_dict()
    del other["layer3.0.conv1.weight"]
    foreign = {
        "tensor": torch.zeros(3),
        "imagenet": {"model": resnet18(weights=None).state_dict()},
        "bare": published.state_dict(),
        "incomplete": {"model": other},
        "generator": {"state_dict": {"network.blocks.0.weight": torch.zeros(3)}},
        "no_config": {"state_dict": {f"network.resnet.{k}": v for k, v in published.state_dict().items()}},
    }
    for name, content in foreign.items():
        path = tmp_path / f"{name}.pth"
        torch.save(content, path)
        with pytest.raises(ValueError, match=f"{name}.pth is no label classifier"):
            load_label_classifier(path)
    for name, data in {"text": b"hello", "empty": b""}.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"{name} is no label classifier"):
            load_label_classifier(path)
    with pytest.raises(ValueError, match=r"nothing\.pth does not exist"):
        load_label_classifier(tmp_path / "nothing.pth")


def test_a_malicious_pickle_is_not_run(tmp_path: Path) -> None:
    target = tmp_path / "touched"
    torch.save({"model": Malicious(target)}, tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(pickle.dumps({"model": Malicious(target)}))
    for name in ("a.pth", "b.pth"):
        with pytest.raises(ValueError, match="no label classifier"):
            load_label_classifier(tmp_path / name)
    assert not target.exists()
