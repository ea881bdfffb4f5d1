import pytest
import torch

from eagleray import device, models
from eagleray.specs import Signature
from eagleray.specs.model import GptModel
from eagleray.specs.train import NextTokenLoss

pytestmark = pytest.mark.gpu


def test_a_granted_gpu_is_the_current_device_over_nccl(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert device.pick(1) == device.Place(torch.device("cuda", 0), "nccl", is_logical_gpu=False)
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16", "float64"])
def test_a_gpt_has_finite_losses_and_gradients_in_each_precision(precision):
    place = device.pick(1)
    signature = Signature(input_kind="tokens", input_shape=(16,), target_kind="tokens", vocabulary_size=64)
    model = models.build(GptModel(kind="gpt", width=32, num_layers=2), signature)
    model = model.to(place.device, device.dtype(precision))
    tokens = torch.randint(64, (4, 17), device=place.device)
    with device.autocast(place, precision):
        losses = models.per_sample_loss(NextTokenLoss(kind="next_token"))(
            model(tokens[:, :-1]), tokens[:, 1:]
        )
    losses.mean().backward()
    assert losses.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
