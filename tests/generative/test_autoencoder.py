"""The autoencoder sees what it should and no more; its objective and discriminator share one backward pass rightly."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from generative.networks.autoencoder import Autoencoder
from generative.networks.bottlenecks import GaussianBottleneck
from generative.networks.patch_discriminator import PatchDiscriminator
from generative.networks.quantizers import FSQ, VectorQuantizer
from generative.objectives.autoencoder import AutoencoderObjective
from generative.randomness import StepRandomness, generator_for

SMALL = {"channels": (8, 16), "encoder_blocks": (1, 1), "encoder_kernels": (1, 1), "decoder_blocks": (1, 1)}


def autoencoder(**settings: object) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(16, 3, FSQ([4, 4, 4]), **{**SMALL, "fold": 2, **settings})


def images(batch: int = 4) -> torch.Tensor:
    return torch.rand(batch, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def draws(batch: int = 4) -> StepRandomness:
    return StepRandomness(generator_for(0, "test"), batch)


def test_shapes_and_round_trip() -> None:
    network = autoencoder().eval()
    output = network(images())
    assert output.image.shape == (4, 3, 16, 16)
    assert (network.grid_size, network.num_tokens, network.num_codes) == (4, 16, 64)
    assert torch.equal(network.tokenize(images()), output.tokens)
    torch.testing.assert_close(network.detokenize(output.tokens), output.image.clamp(-1, 1))


def test_a_row_does_not_depend_on_its_batch() -> None:
    network = autoencoder().eval()
    assert torch.equal(network.tokenize(images()[1:2]), network.tokenize(images())[1:2])


@pytest.mark.parametrize(
    ("kernels", "radius"), [((1, 1), 0), ((3, 1), 2), ((1, 3), 2)]
)  # 3 convolutions on 2 pixels, 2 on 4
def test_a_token_depends_on_the_pixels_near_its_patch_alone(kernels: tuple[int, int], radius: int) -> None:
    network = autoencoder(encoder_kernels=kernels)
    for block in network.encoder.modules():  # the blocks begin as the identity and would hide their reach
        if hasattr(block, "out_conv"):
            torch.nn.init.normal_(block.out_conv.weight)
    image = images(1)
    changed = image.clone()
    changed[:, :, 8:12, 8:12] += 1  # the patch of token (2, 2)
    differs = (network.encode(image) != network.encode(changed)).any(dim=1)[0]
    rows, columns = differs.nonzero().T
    distance = torch.maximum((rows - 2).abs(), (columns - 2).abs())
    assert distance.max() == radius


def test_weights_of_the_losses() -> None:
    network, image = autoencoder(), images()
    objective = AutoencoderObjective(l1_weight=2.0, l2_weight=3.0, perceptual_weight=5.0)
    out = network(image).image
    l1, l2 = F.l1_loss(out, image), F.mse_loss(out, image)

    def perceptual(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).abs().flatten(1).amax(1)

    plain = objective(network, None, None, image, 0, draws())
    torch.testing.assert_close(plain.loss, 2 * l1 + 3 * l2)
    assert "perceptual" not in plain.logs
    full = objective(network, None, perceptual, image, 0, draws())
    torch.testing.assert_close(full.loss, plain.loss + 5 * perceptual(out, image).mean())
    kl = Autoencoder(16, 3, GaussianBottleneck(4, 0.1), **SMALL)
    output = AutoencoderObjective()(kl, None, None, image, 0, draws())
    assert output.logs["bottleneck"] > 0


def test_one_backward_pass_gives_both_players_their_own_gradient() -> None:
    network, image = autoencoder(), images()
    torch.manual_seed(1)
    discriminator = PatchDiscriminator(3, 8, 2)
    objective = AutoencoderObjective(adversarial_weight=0.5, adaptive=False)
    objective(network, discriminator, None, image, 0, draws()).loss.backward()
    together = {
        **{f"n.{k}": p.grad.clone() for k, p in network.named_parameters()},
        **{f"d.{k}": p.grad.clone() for k, p in discriminator.named_parameters()},
    }
    network.zero_grad()
    discriminator.zero_grad()

    fake = network(image).image
    generator_loss = F.l1_loss(fake, image) - 0.5 * discriminator(fake).mean()
    for parameter, gradient in zip(
        network.parameters(), torch.autograd.grad(generator_loss, list(network.parameters())), strict=True
    ):
        parameter.grad = gradient
    real, false = discriminator(image), discriminator(fake.detach())
    (0.5 * (F.relu(1 - real).mean() + F.relu(1 + false).mean())).backward()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(together[f"n.{name}"], parameter.grad, msg=name)
    for name, parameter in discriminator.named_parameters():
        torch.testing.assert_close(together[f"d.{name}"], parameter.grad, msg=name)


def test_adaptive_weight_balances_the_last_layer() -> None:
    network, image = autoencoder(), images()
    discriminator = PatchDiscriminator(3, 8, 2)
    output = AutoencoderObjective()(network, discriminator, None, image, 0, draws())
    fake = network(image).image
    reconstruction = torch.autograd.grad(F.l1_loss(fake, image), network.last_layer, retain_graph=True)[0].norm()
    adversarial = torch.autograd.grad(-discriminator(fake).mean(), network.last_layer)[0].norm()
    torch.testing.assert_close(output.logs["adversarial_weight"], reconstruction / (adversarial + 1e-4))


def test_before_its_start_the_discriminator_neither_speaks_nor_learns() -> None:
    network, image = autoencoder(), images()
    discriminator = PatchDiscriminator(3, 8, 2)
    objective = AutoencoderObjective(adversarial_start=10)
    early = objective(network, discriminator, None, image, 9, draws())
    torch.testing.assert_close(early.loss, objective(network, None, None, image, 9, draws()).loss)
    early.loss.backward()
    assert all((p.grad == 0).all() for p in discriminator.parameters())  # zero and not None: DDP needs every gradient
    assert "adversarial" in objective(network, discriminator, None, image, 10, draws()).logs


def test_discriminator_judges_patches() -> None:
    discriminator = PatchDiscriminator(3, 8, 2)
    assert discriminator(images()).shape == (4, 1, 2, 2)
    assert discriminator(torch.rand(1, 3, 64, 64)).shape[-1] > 8
    with pytest.raises(ValueError, match="discriminator.channels=12"):
        PatchDiscriminator(3, 12)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"encoder_blocks": (1,)}, "network.encoder_blocks"),
        ({"encoder_kernels": (2, 1)}, "network.encoder_kernels"),
        ({"fold": 3}, "data.image_size=16"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        autoencoder(**settings)


@pytest.mark.parametrize("settings", [{"l1_weight": 0.0}, {"adversarial_weight": -1.0}])
def test_objective_is_checked(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"objective\."):
        AutoencoderObjective(**settings)


def test_a_tokenizer_learns_a_few_images() -> None:
    torch.manual_seed(0)
    network = Autoencoder(16, 3, VectorQuantizer(64, 8), **SMALL, fold=2)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    coarse = F.interpolate(torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(2)) * 2 - 1, scale_factor=4)
    objective = AutoencoderObjective()
    losses = []
    for step in range(120):
        randomness = StepRandomness(generator_for(0, "test", step), 8)
        output = objective(network, None, None, coarse, step, randomness)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.logs["l1"].item())
    assert losses[-1] < 0.35 * losses[0]
