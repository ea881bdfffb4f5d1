import pytest
import torch
from safetensors.torch import load

from eagleray.packaging import Image

pytestmark = pytest.mark.gpu


def test_an_image_takes_tensors_from_the_gpu_as_they_are_when_it_is_filled():
    weights = torch.zeros(1 << 20, device="cuda")
    image = Image({"w": weights, "step": torch.tensor(0.0)})
    for step in range(1, 4):
        weights.fill_(step)
        image.fill({"w": weights, "step": torch.tensor(float(step))})
        weights.fill_(-1)  # the next step goes on at once
        loaded = load(bytes(image.data))
        assert (loaded["w"] == step).all()
        assert loaded["step"] == step
