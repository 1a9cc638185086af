"""MaskGIT as a module: known pixels stay, tokens come from the cache, a run knows its tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from helpers import read_json, tiny, train_here
from lightning import Callback, Trainer
from processes import Run
from torch import Tensor

from callbacks import Evaluation, TokenAccuracy
from datamodules.base import ImageDataModule
from datamodules.encoded_cache import EncodedCache
from generative.inpainting import token_mask
from generative.networks.tokenizer import load_tokenizer
from generative.samplers import MaskedTokenSampler
from generative.types import Batch
from launch.build import build_datamodule, build_module, load_weights
from launch.command_line import run_config
from launch.compose import compose_config
from launch.errors import UserError
from launch.run_folder import RunFolder
from lightning_modules import MaskGIT


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outputs")
    train_here(
        folder / "vqgan_scenes" / "run",
        "experiment=vqgan_scenes",
        "network.channels=[32,64]",
        f"paths.outputs={folder}",
    )
    return folder


@pytest.fixture(scope="module")
def run(outputs: Path) -> RunFolder:
    return train_here(outputs / "maskgit_scenes" / "run", "experiment=maskgit_scenes", f"paths.outputs={outputs}")


def built(outputs: Path, *overrides: str) -> tuple[MaskGIT, ImageDataModule]:
    config = compose_config(
        ["experiment=maskgit_scenes", *tiny("maskgit_scenes"), f"paths.outputs={outputs}", *overrides]
    )
    return build_module(config).eval(), build_datamodule(config)


def test_known_pixels_are_bit_exact_and_all_tokens_are_set(outputs: Path) -> None:
    module, data = built(outputs)
    batch = data.batch("test", range(10))
    sample = module.sample(batch, module.evaluation_randomness(batch))
    known = (batch.validity > 0).expand_as(batch.image)
    for output in ("sample", "mean"):
        assert torch.equal(sample[output][known], batch.image[known])
    assert not torch.equal(sample["decoded"][known], batch.image[known])
    assert torch.equal(sample["sample"][~known], sample["decoded"][~known])
    states = list(module.states(batch, module.evaluation_randomness(batch)))
    assert torch.equal(states[-1].image, sample["decoded"])
    assert torch.equal(states[-1].z, states[-1].image)  # nothing is masked any more


def test_mean_of_certain_tokens_is_their_picture(outputs: Path) -> None:
    module, data = built(outputs)
    tokens = module.tokenizer.encode(data.batch("test", range(4)).image)
    certain = torch.nn.functional.one_hot(tokens, module.tokenizer.num_codes).float()
    torch.testing.assert_close(module.tokenizer.decode_mean(certain), module.tokenizer.decode(tokens))
    assert module.tokenizer.codebook().shape == (256, 16)


@pytest.mark.parametrize("setting", [[], ["network.pixels=false", "module.pixel_std=0.1"]], ids=str)
def test_known_pixels_of_partly_covered_patches_are_used(outputs: Path, setting: list[str]) -> None:
    module, data = built(outputs, "degradation=brush_mask", *setting)
    module.measure_patches(data)
    batch = data.batch("test", range(10))
    informed = module.sample(batch, module.evaluation_randomness(batch))["mean"]
    module.pixel_std = module.network.pixels = None
    alone = module.sample(batch, module.evaluation_randomness(batch))["mean"]
    errors = [(picture - batch.image).square().mean() for picture in (informed, alone)]
    assert errors[0] < errors[1]


def test_the_fill_of_the_hole_does_not_matter(outputs: Path) -> None:
    module, data = built(outputs)
    batch = data.batch("test", range(10))
    expected = module.sample(batch, module.evaluation_randomness(batch))
    batch.degraded = torch.where(batch.validity > 0, batch.degraded, torch.rand_like(batch.degraded) * 2 - 1)
    again = module.sample(batch, module.evaluation_randomness(batch))
    assert all(torch.equal(again[output], expected[output]) for output in expected)


def test_evaluation_bounds_what_can_be_reached(outputs: Path) -> None:
    module, data = built(outputs)
    batch = data.batch("test", range(10))
    step = module.evaluation_step(batch)
    assert step["outputs"].keys() == {"sample", "mean", "decoded", "reconstruction", "composite"}
    known = (batch.validity > 0).expand_as(batch.image)
    assert torch.equal(step["outputs"]["composite"][known], batch.image[known])
    assert step["token_accuracy"].keys() == {"0.1", "0.3", "0.5", "0.7", "0.9"}
    assert all(values.shape == (10,) for values in step["token_accuracy"].values())


def test_sampling_does_not_depend_on_the_batch(outputs: Path) -> None:
    module, data = built(outputs)
    whole, part = data.batch("test", range(10)), data.batch("test", [7, 3])
    all_samples = module.sample(whole, module.evaluation_randomness(whole))["sample"]
    some = module.sample(part, module.evaluation_randomness(part))["sample"]
    torch.testing.assert_close(some, all_samples[[7, 3]], atol=1e-4, rtol=0)


def first_training_batch(data: ImageDataModule) -> Batch:
    return data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)


def test_training_takes_its_tokens_from_the_cache(outputs: Path, tmp_path: Path) -> None:
    module, data = built(outputs, "data.horizontal_flip=true", "data.quarter_turns=true")
    tokenizer = module.tokenizer
    data.use_encoder(tokenizer, str(tmp_path))
    module.measure_patches(data)
    batch = first_training_batch(data)
    assert torch.equal(batch.encoded, tokenizer.encode(batch.image))  # of mirrored and turned images too
    mirrored = (batch.image != data.batch("train", batch.index).image).flatten(1).any(1)
    assert mirrored.any()
    assert not mirrored.all()
    assert data._encoded.values.shape == (64, 8, 64)
    assert data._encoded.values.element_size() == 2
    module.tokenizer.network.encoder = None  # were it asked, this would fail
    assert module.loss(batch, module.evaluation_randomness(batch)).loss.isfinite()


def test_a_cached_file_is_used_again(outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, data = built(outputs)
    data.use_encoder(module.tokenizer, str(tmp_path))
    expected = first_training_batch(data).encoded
    monkeypatch.setattr(module.tokenizer, "encode", None)
    data.use_encoder(module.tokenizer, str(tmp_path))
    assert torch.equal(first_training_batch(data).encoded, expected)


def test_tokens_of_large_codebooks_survive_two_bytes() -> None:
    tokens = torch.tensor([[[0, 32767, 32768, 65535]]])
    assert torch.equal(EncodedCache(tokens.to(torch.int16)).lookup(torch.tensor([0])), tokens[0])


def test_hole_is_widened_by_what_the_encoder_sees(outputs: Path) -> None:
    module, data = built(outputs)
    assert module.dilation == module.tokenizer.dilation == 0
    wider, _ = built(outputs, "module.dilation=1")
    batch = data.batch("test", range(10))
    assert torch.equal(wider._unknown(batch), token_mask(batch.validity, 8, 1))
    assert wider._unknown(batch).sum() > module._unknown(batch).sum()


def test_network_calls_of_the_record_are_those_made(outputs: Path) -> None:
    module, data = built(outputs, "sampler.num_steps=24")
    rows: list[int] = []
    module.network.register_forward_hook(lambda network, inputs, output: rows.append(len(output)))
    asking: list[Callback] = [Evaluation(), TokenAccuracy()]
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=asking
    )
    trainer.test(module, data, verbose=False)
    elsewhere = 10 * (1 + 5)  # ``mean``, and the token accuracy at five masked shares
    unknown = module._unknown(data.batch("test", range(10))).sum(1)
    calls = module.outputs["sample"].num_network_calls
    assert calls == pytest.approx((sum(rows) - elsewhere) / 10, abs=1e-3)
    assert calls == pytest.approx(unknown.clamp(max=24).float().mean().item(), abs=1e-3)
    assert calls < 24  # some holes have fewer tokens than there are steps


def test_known_pixels_can_be_left_as_decoded(outputs: Path) -> None:
    kept, data = built(outputs)
    painted, _ = built(outputs, "module.reimpose_known=false")
    batch = data.batch("test", range(4))
    a, b = (module.sample(batch, module.evaluation_randomness(batch)) for module in (kept, painted))
    assert torch.equal(b["sample"], a["decoded"])
    hole = (batch.validity == 0).expand_as(batch.image)
    assert torch.equal(b["mean"][hole], a["mean"][hole])
    assert not torch.equal(b["mean"], a["mean"])
    assert [module.sampling_record()["reimpose_known"] for module in (kept, painted)] == [True, False]


def test_run_leaves_metrics_images_and_its_tokenizer(run: RunFolder, outputs: Path) -> None:
    content = read_json(run.path / "metrics.json")
    for output in ("sample", "mean", "decoded", "reconstruction", "composite", "degraded"):
        assert {f"psnr/{output}", f"psnr_hole/{output}", f"ssim/{output}"} <= content["metrics"].keys()
    assert "token_accuracy/0.5" in content["metrics"]
    assert {"calibration_gap/mean_of_2", "spread/sample", "spread_hole/sample"} <= content["metrics"].keys()
    tokenizer = load_tokenizer(outputs / "vqgan_scenes" / "run" / "checkpoints" / "last.ckpt")
    sampling = content["record"]["sampling"]
    assert sampling["tokenizer"]["hash"] == tokenizer.hash
    assert sampling["num_network_calls"] == {"sample": 2, "mean": 1}
    assert run.record["parts"]["tokenizer"] == tokenizer.record()
    assert {p.name for p in (run.path / "images").iterdir()} >= {"restoration", "steps", "test", "steps_test"}
    names = torch.load(run.checkpoint, weights_only=True)["state_dict"]
    assert all(name.startswith("network.") and "decoder" not in name for name in names)


def test_a_run_keeps_its_tokenizer_and_refuses_another(run: RunFolder, outputs: Path, tmp_path: Path) -> None:
    other = train_here(tmp_path / "other", "experiment=vqgan_scenes", "seed=1", "trainer.max_steps=1")
    newer = outputs / "vqgan_scenes" / "newer"  # auto would take this one now
    shutil.copytree(other.path, newer)
    try:
        config = run_config(run)
        module = build_module(config)
        load_weights(module, run, run.load_checkpoint(), "ema")
        config.tokenizer = str(newer)
        with pytest.raises(UserError, match="has other weights than the tokenizer"):
            load_weights(build_module(config), run, run.load_checkpoint(), "ema")
    finally:
        shutil.rmtree(newer)


def test_missing_tokenizer_names_the_command(tmp_path: Path) -> None:
    arguments = ["experiment=maskgit_scenes", *tiny("maskgit_scenes"), f"paths.outputs={tmp_path}"]
    output = Run(tmp_path / "log", "train.py", *arguments).finished(2)
    assert "python train.py experiment=vqgan_scenes" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("degradation", ["gaussian", "mixed"])
def test_a_degradation_without_known_pixels_is_refused(outputs: Path, degradation: str) -> None:
    module, data = built(outputs, f"degradation={degradation}")
    with pytest.raises(ValueError, match="degradation=holes"):
        module.check_data(data)


def test_the_record_tells_the_steps_that_are_taken(outputs: Path) -> None:
    module, _ = built(outputs)
    for schedule, stop, steps in (("cosine", None, 16), ("cosine", 3, 3), ("one_shot", None, 1)):
        module.sampler = MaskedTokenSampler(16, schedule, stop_at_step=stop)
        assert module.sampling_record()["num_steps"] == steps == module.outputs["sample"].num_network_calls


def test_labels_reach_the_network(outputs: Path) -> None:
    module, data = built(outputs, "module=maskgit_labels")
    for parameter in module.network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    batch = data.batch("test", range(4))
    a = module.sample(batch, module.evaluation_randomness(batch))["decoded"]
    batch.labels = batch.labels.roll(1, dims=1)
    assert not torch.equal(module.sample(batch, module.evaluation_randomness(batch))["decoded"], a)


def test_labels_are_hidden_in_training_and_guide_in_a_part_of_the_decoding(outputs: Path) -> None:
    """The null condition of a network that nothing was hidden from would be an unknown input."""
    hiding = "module.label_dropout.set_probability=1"
    module, data = built(outputs, "module=maskgit_labels", hiding, "guidance.scale=3", "guidance.interval=[0.9,1]")
    data.use_encoder(module.tokenizer, None)
    module.measure_patches(data)
    seen: list[tuple[int, Tensor]] = []
    module.network.register_forward_pre_hook(lambda network, inputs: seen.append((len(inputs[0]), inputs[1].labels)))
    batch = first_training_batch(data)
    assert batch.labels.any()
    module.loss(batch, module.evaluation_randomness(batch))
    assert not seen.pop()[1].any()
    batch = data.batch("test", range(4))
    assert (module._unknown(batch).sum(1) > 1).all()
    list(module.states(batch, module.evaluation_randomness(batch)))
    assert [rows for rows, _ in seen] == [8, 4]  # both branches at the first step, where all of the hole is masked
    assert torch.equal(seen[0][1], torch.cat([batch.labels, torch.zeros_like(batch.labels)]))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("network=dit_tiny", "choose network=token_transformer"),
        ("objective=diffusion", "choose objective=masked_tokens"),
        ("sampler=ddim", "choose sampler=maskgit"),
        ("module.dilation=-1", "module.dilation=-1"),
        ("module.feather=-1", "module.feather=-1"),
        ("module.pixel_std=0", "module.pixel_std=0"),
        ("module.pixel_std=0.1", "would count the known pixels twice"),
        ("module=maskgit_labels guidance.rescale=0.7", "guidance.rescale=0.7 is for images"),
        ("tokenizer=/nowhere", "there is no such run folder"),
    ],
)
def test_wrong_parts_are_refused_in_one_sentence(outputs: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_module(compose_config(["experiment=maskgit_scenes", f"paths.outputs={outputs}", *override.split()]))
