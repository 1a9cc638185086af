"""The DDPM: what its network sees, what its draws depend on, and that a bad pair is refused before the data."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import train_here
from hydra.utils import instantiate
from PIL import Image
from torch import Tensor, nn

from generative.guidance import ClassifierFreeGuidance, LabelDropout
from generative.judges.label_classifier import LabelClassifier
from generative.objectives import DiffusionObjective
from generative.randomness import StepRandomness, generator_for
from generative.samplers import DDIM, Ancestral
from generative.schedules import NoiseSchedule
from generative.types import Batch, Condition
from launch.build import build_module
from launch.compose import compose_config
from launch.errors import UserError
from lightning_modules import DDPM

LABELS = 5


class Spy(nn.Module):
    """Answers with a multiple of the state plus the number of labels; remembers the labels it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.3))
        self.seen: list[Tensor | None] = []

    def forward(self, x: Tensor, times: Tensor, condition: Condition) -> tuple[Tensor]:
        self.seen.append(None if condition.labels is None else condition.labels.detach().clone())
        told = 0 if condition.labels is None else condition.labels.sum(1)[:, None, None, None]
        return (x * self.scale + 0.1 * told,)


def ddpm(**kwargs: Any) -> DDPM:
    settings: dict[str, Any] = {"sampler": DDIM(num_steps=4)} | kwargs
    return DDPM(
        Spy(), NoiseSchedule("cosine", zero_terminal_snr=True), DiffusionObjective(),
        optimizer=partial(torch.optim.AdamW), learning_rate_factor=lambda step: 1.0, total_steps=10, **settings,
    )  # fmt: skip


def batch(size: int = 6) -> Batch:
    g = torch.Generator().manual_seed(0)
    image = torch.rand(size, 3, 8, 8, generator=g) * 2 - 1
    labels = torch.eye(LABELS)[torch.arange(size) % LABELS]
    return Batch(image, torch.arange(size), labels=labels)


def training_draws(size: int) -> StepRandomness:
    return StepRandomness(generator_for(0, "objective"), size)


def test_training_hides_labels_and_an_unconditional_module_hides_them_all() -> None:
    data = batch(600)
    module = ddpm(label_dropout=LabelDropout(set_probability=0.5))
    module.loss(data, training_draws(600)).loss.backward()
    shown = module.network.seen[0].sum(1)
    assert set(shown.tolist()) == {0.0, 1.0}
    assert shown.mean().item() == pytest.approx(0.5, abs=0.1)
    unconditional = ddpm(labels=False)
    unconditional.loss(data, training_draws(600))
    unconditional.sample(data, training_draws(600))
    assert set(unconditional.network.seen) == {None}


def test_an_image_does_not_depend_on_its_batch() -> None:
    module, data = ddpm(sampler=Ancestral(num_steps=5), guidance=ClassifierFreeGuidance(scale=2.0)), batch()
    whole = module.sample(data, module.evaluation_randomness(data))["sample"]
    rows = torch.tensor([4, 1])
    part = data.select(rows)
    assert torch.allclose(whole[rows], module.sample(part, module.evaluation_randomness(part))["sample"], atol=1e-6)
    assert whole.abs().max() <= 1


def test_guidance_extrapolates_from_the_unconditional_answer() -> None:
    data = batch()
    plain, guided = ddpm(), ddpm(guidance=ClassifierFreeGuidance(scale=3.0))
    samples = [m.sample(data, m.evaluation_randomness(data))["sample"] for m in (plain, guided)]
    assert not torch.allclose(*samples)
    assert len(plain.network.seen[0]) == 6
    shown = guided.network.seen[0]
    assert len(shown) == 12
    assert sorted(shown.sum(1).tolist()) == [0.0] * 6 + [1.0] * 6


@pytest.mark.parametrize(
    ("scale", "hidden", "refused"),
    [
        (3.0, None, "label_dropout=null"),
        (3.0, LabelDropout(0.0), r"label_dropout\.set_probability=0"),
        (1.0, LabelDropout(0.0), None),  # experiment=ddpm_iclevr_lab
        (3.0, LabelDropout(0.1), None),
        (3.0, LabelDropout(0.0, 0.3), None),
    ],
)
def test_guidance_by_an_answer_that_nothing_teaches_is_refused(
    scale: float, hidden: LabelDropout | None, refused: str | None
) -> None:
    module = ddpm(guidance=ClassifierFreeGuidance(scale), label_dropout=hidden)
    with pytest.raises(ValueError, match=rf"guidance\.scale=3 .*{refused}") if refused else nullcontext():
        module.check_contract()


def test_the_states_end_in_the_sample() -> None:
    module, data = ddpm(), batch()
    *_, last = module.states(data, module.evaluation_randomness(data))
    sample = module.sample(data, module.evaluation_randomness(data))["sample"]
    assert torch.equal(last.z.clamp(-1, 1), sample)


def test_the_classifier_in_the_loop_is_marked_and_moves_the_sample(tmp_path: Any) -> None:
    torch.manual_seed(0)
    network = LabelClassifier(num_labels=LABELS)
    path = tmp_path / "classifier.pth"
    torch.save({"model": network.resnet.state_dict()}, path)
    data = batch(2)
    alone, assisted = ddpm(), ddpm(classifier_guidance=50.0, classifier=str(path))
    assert not alone.sampling_record()["assisted"]
    assert assisted.sampling_record()["assisted"]
    assert assisted.state_dict().keys() == alone.state_dict().keys()  # the classifier is not stored
    with torch.inference_mode():
        a, b = (m.sample(data, m.evaluation_randomness(data))["sample"] for m in (alone, assisted))
    assert not torch.allclose(a, b)
    with pytest.raises(ValueError, match="experiment=label_classifier"):
        ddpm(classifier_guidance=1.0)


def test_the_cifar10_experiment_trains_as_published() -> None:
    """The defaults of scripts/run_cifar.py in github.com/hojonathanho/diffusion, and 800,000 steps (arXiv 2006.11239)."""
    config = compose_config(["experiment=ddpm_cifar10"])
    assert config.module.output == config.objective.loss_space == "noise"
    assert (config.objective.weight, config.objective.logit_mean) == ("uniform", None)
    assert (config.schedule.kind, config.schedule.beta_start, config.schedule.beta_end) == ("linear", 1e-4, 0.02)
    assert (config.schedule.num_timesteps, config.schedule.zero_terminal_snr) == (1000, False)
    assert (config.data.name, config.data.val_from, config.data.num_train) == ("cifar10", "test", None)
    assert config.data.horizontal_flip
    assert (config.data.global_batch_size, config.trainer.max_steps) == (128, 800_000)
    assert config.trainer.precision == "32-true"
    assert (config.trainer.gradient_clip_val, config.trainer.accumulate_grad_batches) == (1.0, 1)
    assert (config.optimizer.lr, list(config.optimizer.betas), config.optimizer.weight_decay) == (2e-4, [0.9, 0.999], 0)
    factor = instantiate(config.learning_rate)
    for step in (0, 100, 4999, 5000, 400_000, 799_999):
        assert factor(step) == pytest.approx(min(step / 5000, 1), abs=3e-4)
    assert (config.network.dropout, config.callbacks.ema.decay, config.callbacks.spikes) == (0.1, 0.9999, None)
    generation = config.callbacks.generation
    assert (generation.num_images, generation.reference_split, generation.num_reference) == (50_000, "train", None)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["experiment=ddpm_scenes", "sampler=heun"], "sampler=Heun is of another paradigm: choose sampler=ddim"),
        (["experiment=ddpm_scenes", "objective=mean_flow"], "choose objective=diffusion"),
        (["experiment=ddpm_scenes", "sampler.num_steps=2000"], "sampler.num_steps"),
        (["experiment=meanflow_dit", "sampler=ddim"], "choose sampler=flow_map"),
        (["experiment=meanflow_dit", "objective=diffusion"], "choose objective=improved_mean_flow"),
    ],
)
def test_parts_of_another_paradigm_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_module(compose_config(overrides))


def test_noise_output_at_zero_terminal_snr_is_refused() -> None:
    config = compose_config(["experiment=ddpm_scenes", "module.output=noise", "objective.loss_space=noise"])
    with pytest.raises(UserError, match=r"module\.output=noise.*zero_terminal_snr"):
        build_module(config)


@pytest.mark.parametrize(
    "experiment", ["ddpm_scenes", "ddpm_iclevr", "ddpm_iclevr_large", "ddpm_folder", "ddpm_cifar10"]
)
def test_experiments_train_where_sampling_starts(experiment: str) -> None:
    config = compose_config([f"experiment={experiment}"])
    schedule, objective = instantiate(config.schedule), instantiate(config.objective)
    start = instantiate(config.sampler).timesteps(schedule)[0]
    assert start == schedule.num_timesteps - 1
    assert objective.probability(start, schedule.num_timesteps) >= 1 / schedule.num_timesteps
    objective.check(schedule)


def test_a_start_that_is_never_drawn_is_refused_in_training_alone(tmp_path: Path) -> None:
    overrides = ["experiment=ddpm_scenes", "objective.terminal_share=0"]
    build_module(compose_config(overrides))  # a run that was trained so can still be evaluated
    with pytest.raises(UserError, match=r"timestep 999.*probability 2e-08.*set objective\.terminal_share=0\.02\.$"):
        train_here(tmp_path / "run", *overrides)
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("guidance.scale=3", r"guidance\.scale=3 has no effect.*no labels \(module\.labels=false\); leave it out"),
        ("module.labels=true", r"module\.labels=true.*data without labels: set module\.labels=false"),
    ],
)
def test_labels_that_the_data_lack_are_refused_before_the_first_step(
    override: str, message: str, tmp_path: Path
) -> None:
    for number in range(12):
        image = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    with pytest.raises(UserError, match=message) as e:
        train_here(tmp_path / "run", "experiment=ddpm_scenes", f"data.root={tmp_path}", "data=image_folder", override)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "run" / "metrics.csv").exists()
    assert not (tmp_path / "run" / "run.json").exists()
