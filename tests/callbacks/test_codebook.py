"""The codebook's metrics: closed forms, what merges over batches and ranks, and tokenizers without codes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import on_two_ranks
from torch import Tensor, nn

from callbacks import Codebook, TokenAccuracy
from generative.metrics.codebook import CodebookMetrics
from generative.types import Batch


def measured(num_codes: int, *batches: Tensor) -> dict[str, float]:
    metrics = CodebookMetrics(num_codes)
    for tokens in batches:
        metrics.update(tokens)
    return metrics.compute()


def test_an_even_and_a_collapsed_codebook() -> None:
    even = measured(8, torch.arange(8).repeat(3).view(6, 4))
    assert even["codebook_usage/codes"] == 1
    assert even["codebook_perplexity/codes"] == pytest.approx(8)
    collapsed = measured(8, torch.full((5, 4), 7))
    assert collapsed["codebook_usage/codes"] == 1 / 8
    assert collapsed["codebook_perplexity/codes"] == pytest.approx(1)


def test_perplexity_is_exp_of_the_entropy_of_all_batches_together() -> None:
    batches = torch.tensor([[0, 0, 0, 1]]), torch.tensor([[2, 0], [0, 1]])
    entropy = -sum(p * math.log(p) for p in (5 / 8, 2 / 8, 1 / 8))
    expected = {"codebook_usage/codes": 3 / 5, "codebook_perplexity/codes": math.exp(entropy)}
    assert measured(5, *batches) == pytest.approx(expected)
    assert measured(5, *(part for batch in batches for part in batch.split(1))) == pytest.approx(expected)


def test_tokens_that_are_no_codes_are_refused() -> None:
    for tokens in ([[0, 5]], [[-1, 2]]):
        with pytest.raises(ValueError, match="Tokens of 5 codes"):
            measured(5, torch.tensor(tokens))
    assert measured(5) == {}


def _measure_on(rank: int) -> tuple[dict[str, float], int]:
    metrics = CodebookMetrics(6)
    if rank == 0:  # the other rank sees no image
        metrics.update(torch.tensor([[0, 1, 2, 2]]))
    return metrics.compute(), metrics.num_images


def test_ranks_add_their_counts(tmp_path: Path) -> None:
    assert on_two_ranks(_measure_on, tmp_path) == [(measured(6, torch.tensor([[0, 1, 2, 2]])), 1)] * 2


def tokenizer(restorer: Any, num_codes: int | None, extra: Callable[[Batch], dict[str, Any]]) -> Any:
    """Give the stand-in module a codebook and further outputs."""
    network = nn.Linear(1, 1)
    network.num_codes = num_codes
    restorer.network = network
    restorer.current_tasks = frozenset({"reconstruct"})
    restorer.validation_step = lambda batch, batch_idx: {"batch": batch, "outputs": {}, **extra(batch)}
    restorer.test_step = restorer.validation_step
    return restorer


def test_tokens_of_a_test_are_counted(restorer: Any, data: Any, make_trainer: Callable[..., Any]) -> None:
    module = tokenizer(restorer, 16, lambda batch: {"tokens": batch.index[:, None].repeat(1, 3)})
    codebook = Codebook()
    trainer = make_trainer(codebook)
    for _ in range(2):  # each test starts afresh
        trainer.test(module, data, verbose=False)
        assert codebook.results["codebook_usage/codes"] == 10 / 16
        assert codebook.results["codebook_perplexity/codes"] == pytest.approx(10)
        assert (codebook.record["num_images"], codebook.record["num_codes"]) == (10, 16)
        assert codebook.record["definitions"].keys() == codebook.results.keys()
    trainer.validate(module, data, verbose=False)
    assert float(trainer.callback_metrics["val/codebook_perplexity/codes"]) == pytest.approx(10)


@pytest.mark.parametrize(
    ("num_codes", "outputs"),
    [(None, {"tokens": None}), (16, {}), (16, {"tokens": None}), (None, {"token_accuracy": {}})],
)
def test_nothing_to_measure_gives_no_results(
    restorer: Any, data: Any, make_trainer: Callable[..., Any], num_codes: int | None, outputs: dict[str, Any]
) -> None:
    callbacks = Codebook(), TokenAccuracy()
    trainer = make_trainer(*callbacks)
    trainer.test(tokenizer(restorer, num_codes, lambda batch: outputs), data, verbose=False)
    assert [callback.results for callback in callbacks] == [{}, {}]
    assert [callback.record for callback in callbacks] == [{}, {}]


def test_token_accuracy_is_the_mean_over_the_images(restorer: Any, data: Any, make_trainer: Callable[..., Any]) -> None:
    def accuracy(batch: Batch) -> dict[str, Any]:
        return {"token_accuracy": {"0.25": batch.index / 10, "0.5": (batch.index == 3).float()}}

    callback = TokenAccuracy()
    make_trainer(callback).test(tokenizer(restorer, 16, accuracy), data, verbose=False)
    assert callback.results == pytest.approx({"token_accuracy/0.25": 0.45, "token_accuracy/0.5": 0.1})
    assert callback.record["num_images"] == 10
