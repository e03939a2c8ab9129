"""Fully connected ReLU networks on flattened inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from anybatch.models.geometry import require_at_least_one, scaled_channels

__all__ = ["MLP"]


class MLP(nn.Module):
    """Linear layers with ReLU between them, on inputs of any shape.

    The default, one hidden layer of 1,024 units, is the fully connected network that Shallue et
    al. (2019) train on MNIST. Without hidden layers it is logistic regression.

    Args:
        input_shape: shape of one example, each side >= 1; flattened.
        num_outputs: number of outputs, >= 1.
        hidden: units of each hidden layer at width 1, each >= 1; may be empty.
        width: multiplier of the hidden layers, > 0.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_outputs: int,
        *,
        hidden: Sequence[int] = (1024,),
        width: float = 1.0,
    ) -> None:
        super().__init__()
        for side in input_shape:
            require_at_least_one("every side of input_shape", side)
        require_at_least_one("num_outputs", num_outputs)
        layers: list[nn.Module] = [nn.Flatten()]
        features = math.prod(input_shape)
        for published_units in hidden:
            require_at_least_one("every entry of hidden", published_units)
            units = scaled_channels(published_units, width)
            layers += [nn.Linear(features, units), nn.ReLU()]
            features = units
        layers.append(nn.Linear(features, num_outputs))
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (n, *input_shape) floats to (n, num_outputs) outputs."""
        outputs: Tensor = self.layers(inputs)
        return outputs
