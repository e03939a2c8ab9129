"""Initial weights that differ from torch's defaults. All draws come from torch's global RNG."""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

from torch import nn

__all__ = [
    "NormedBranch",
    "initialize_kaiming_normal",
    "initialize_variance_scaling",
    "zero_last_norms",
]

# Standard deviation of a standard normal variable truncated to [-2, 2].
_TRUNCATED_STANDARD_DEVIATION = 0.87962566103423978


def initialize_variance_scaling(model: nn.Module) -> None:
    """Draw every convolution and linear weight with variance 1 / fan_in; set their biases to 0.

    w ~ normal truncated at two of its standard deviations, Var(w) = 1 / fan_in after truncation,
    where fan_in = input channels x kernel height x kernel width. It is the default of
    TensorFlow's `variance_scaling_initializer`, which Lee et al. use.

    Args:
        model: changed in place; layers other than `nn.Conv2d` and `nn.Linear` are left alone.

    Example:
        >>> layer = nn.Linear(4, 2)
        >>> initialize_variance_scaling(layer)
        >>> bool((layer.bias == 0).all()), float(layer.weight.detach().abs().max()) < 1.14
        (True, True)

    Reference:
        Lee, Ajanthan, Torr, Jaggi (2021), Understanding the Effects of Data Parallelism and
        Sparsity on Neural Network Training: the published code.
    """
    for module in model.modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        fan_in = module.weight[0].numel()
        deviation = fan_in**-0.5 / _TRUNCATED_STANDARD_DEVIATION
        nn.init.trunc_normal_(module.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def initialize_kaiming_normal(model: nn.Module, *, fan: Literal["fan_in", "fan_out"]) -> None:
    """Draw every convolution weight with variance 2 / fan, as suits a ReLU on one side of it.

    w ~ N(0, 2 / fan), with fan = channels x kernel height x kernel width counted on the input
    side ("fan_in", keeps the forward variance) or the output side ("fan_out", the backward one).

    Args:
        model: changed in place; linear and normalization layers keep torch's defaults.
        fan: the side on which connections are counted.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> layer = nn.Conv2d(32, 64, 3, bias=False)
        >>> initialize_kaiming_normal(layer, fan="fan_out")
        >>> round(float(layer.weight.detach().var()) * 64 * 9, 1)
        2.0

    Reference:
        He, Zhang, Ren, Sun (2015), Delving Deep into Rectifiers, equations 10 and 14.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=fan, nonlinearity="relu")


@runtime_checkable
class NormedBranch(Protocol):
    """A residual block whose branch ends in a normalization layer, with nothing after it."""

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The layer whose output is added to the shortcut."""
        ...


def zero_last_norms(model: nn.Module) -> int:
    """Begin every residual block as its shortcut: the last norm of its branch gets the scale 0.

    Only branches that end in a norm: a ReLU after a norm with scale and shift 0 has the derivative
    0 for every input, so that neither the norm nor anything before it would ever learn.

    Args:
        model: changed in place.

    Returns:
        The number of blocks changed.

    Reference:
        Goyal et al. (2017), Accurate, Large Minibatch SGD, section 5.1.
    """
    blocks = [module for module in model.modules() if isinstance(module, NormedBranch)]
    for block in blocks:
        nn.init.zeros_(block.last_norm.weight)
    return len(blocks)
