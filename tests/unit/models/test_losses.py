import pytest
import torch
import torch.nn.functional as F

from eagleray import models
from eagleray.errors import SpecError
from eagleray.specs import IGNORED_TARGET
from eagleray.specs.train import CrossEntropyLoss, MaskedTokenLoss, MseLoss, NextTokenLoss

CLASS = models.per_sample_loss(CrossEntropyLoss(kind="cross_entropy"))
VALUE = models.per_sample_loss(MseLoss(kind="mse"))
TOKENS = [
    models.per_sample_loss(NextTokenLoss(kind="next_token")),
    models.per_sample_loss(MaskedTokenLoss(kind="masked_token")),
]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_each_sample_averages_to_torchs(smoothing):
    loss = models.per_sample_loss(CrossEntropyLoss(kind="cross_entropy", label_smoothing=smoothing))
    logits, targets = torch.randn(6, 4), torch.randint(4, (6,))
    expected = F.cross_entropy(logits, targets, label_smoothing=smoothing)
    torch.testing.assert_close(loss(logits, targets).mean(), expected)


@pytest.mark.parametrize("shape", [(6, 1), (6,)])
def test_squared_error_does_not_broadcast_over_the_batch(shape):
    outputs, targets = torch.randn(6, 1), torch.randn(shape)
    torch.testing.assert_close(VALUE(outputs, targets), (outputs[:, 0] - targets.reshape(6)) ** 2)


@pytest.mark.parametrize("loss", TOKENS)
def test_the_token_loss_is_the_mean_over_the_tokens_that_count(loss):
    logits, targets = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    targets[0, 2:] = IGNORED_TARGET
    expected = [F.cross_entropy(logits[0, :2], targets[0, :2]), F.cross_entropy(logits[1], targets[1])]
    torch.testing.assert_close(loss(logits, targets), torch.stack(expected))


@pytest.mark.parametrize("loss", TOKENS)
def test_a_sample_without_counted_tokens_has_loss_and_gradient_zero(loss):
    logits = torch.randn(2, 5, 7, requires_grad=True)
    targets = torch.randint(7, (2, 5))
    targets[0] = IGNORED_TARGET
    losses = loss(logits, targets)
    losses.sum().backward()
    assert losses[0] == 0
    assert logits.grad is not None
    assert (logits.grad[0] == 0).all()
    assert (logits.grad[1] != 0).any()


def test_a_filler_of_weight_zero_gives_a_gradient_of_zero():
    logits = torch.randn(1, 3, requires_grad=True)
    (CLASS(logits, torch.tensor([0])) * torch.zeros(1)).sum().backward()
    assert (logits.grad == 0).all()


@pytest.mark.parametrize(
    ("given", "expected"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)]
)
def test_half_precision_is_widened_and_float64_kept(given, expected):
    assert CLASS(torch.randn(2, 3, dtype=given), torch.tensor([0, 1])).dtype == expected
    assert VALUE(torch.randn(2, 3, dtype=given), torch.zeros(2, 3)).dtype == expected


@pytest.mark.parametrize(
    ("loss", "outputs", "targets"),
    [
        (CLASS, torch.zeros(2, 5, 3), torch.zeros(2, dtype=torch.int64)),
        (VALUE, torch.zeros(2, 3), torch.zeros(2, 2)),
        (TOKENS[0], torch.zeros(2, 3), torch.zeros(2, 4, dtype=torch.int64)),
    ],
)
def test_outputs_that_do_not_fit_the_targets_are_refused_with_both_shapes(loss, outputs, targets):
    with pytest.raises(SpecError) as refusal:
        loss(outputs, targets)
    assert str(tuple(outputs.shape)) in str(refusal.value)
    assert str(tuple(targets.shape)) in str(refusal.value)


def test_hits_are_counted_per_sample():
    logits = F.one_hot(torch.tensor([[1, 2, 3], [0, 0, 0]]), 4).float()
    targets = torch.tensor([[1, 2, IGNORED_TARGET], [0, 3, 3]])
    correct, counted = models.num_correct(logits, targets)
    assert correct.tolist() == [2, 1]
    assert counted.tolist() == [2, 3]
    correct, counted = models.num_correct(logits[:, 0], torch.tensor([1, 1]))
    assert correct.tolist() == [1, 0]
    assert counted.tolist() == [1, 1]
