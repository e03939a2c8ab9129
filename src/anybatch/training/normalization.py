"""BatchNorm over ghost batches: statistics that do not depend on ranks or micro-batches.

In training each ghost (consecutive examples of the global batch) is normalized by its own mean
and variance. The running statistics take one step per update,

    running <- (1 - m) running + m (sum over ghosts of n_ghost * statistic) / (sum of n_ghost),

over the ghosts of all micro-batches and ranks, with the layer's momentum m (or 1/updates where it
is None) and the unbiased variance, as torch does. With one ghost per update this is torch's own
BatchNorm. A layer that is called more than once in an update takes the mean over all its calls; one
that is not called keeps its statistics. A ghost of one value per channel has variance 0.

Two rules of a recipe change that: evaluated with the statistics of the last update, m is 1; frozen,
layers normalize by their running statistics in training too, which then couples no examples.

Reference: Hoffer, Hubara, Soudry 2017, "Train longer, generalize better", algorithm 1 (ghost
batches; there each ghost moves the running statistics in turn). Akiba, Suzuki, Fukuda 2017,
"Extremely large minibatch SGD", section 3 (the last update's statistics over all workers).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from anybatch.errors import InputError
from anybatch.recipe import BatchNormSettings
from anybatch.world import World

__all__ = ["GhostBatchNorm", "GhostLayout", "GhostNormalization"]


@dataclass(slots=True)
class GhostLayout:
    """What the layers must know of the micro-batch that is passing through.

    Attributes:
        ghost_batch_size: examples per ghost; None: the whole micro-batch is one.
        num_examples: of this micro-batch.
        counted: False for a placeholder batch of a rank without examples.
    """

    ghost_batch_size: int | None
    num_examples: int = 0
    counted: bool = True


class GhostBatchNorm(nn.Module):
    """Takes the place of a BatchNorm layer, with its parameters, buffers and state-dict keys.

    Args:
        layer: the layer replaced; its parameters and buffers are shared, not copied.
        layout: filled in by the training before each forward pass.
        name: of the layer, for messages.

    Attributes:
        momentum: of the running statistics; None: the mean over all updates.
        frozen: whether the layer came in evaluation mode: its statistics are to stay.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(self, layer: _BatchNorm, layout: GhostLayout, name: str) -> None:
        super().__init__()
        self.layer_name = name
        self.layout = layout
        self.eps, self.momentum = layer.eps, layer.momentum
        self.num_features, self.affine = layer.num_features, layer.affine
        self.track_running_stats = layer.track_running_stats
        self.register_parameter("weight", layer.weight)
        self.register_parameter("bias", layer.bias)
        for buffer in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(buffer, getattr(layer, buffer))
        reference = layer.weight if layer.weight is not None else layer.running_mean
        dtype = None if reference is None else reference.dtype
        device = None if reference is None else reference.device
        # Sums over the ghosts of the update in progress: n * mean, n * variance, n.
        shape = (2 * layer.num_features + 1,)
        pending = torch.zeros(shape, dtype=dtype, device=device)
        self.register_buffer("pending", pending, persistent=False)
        self.frozen = not layer.training
        self.train(layer.training)

    pending: Tensor

    def extra_repr(self) -> str:
        """Sizes, as torch's layers print them."""
        return f"{self.num_features}, ghost_batch_size={self.layout.ghost_batch_size}"

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalize ghost by ghost in training, by the running statistics otherwise."""
        if not self.training and self.running_mean is not None:
            return torch.nn.functional.batch_norm(
                inputs, self.running_mean, self.running_var, self.weight, self.bias,
                training=False, eps=self.eps,
            )  # fmt: skip
        if not self.training or self.layout.ghost_batch_size is None:
            return self._one_ghost(inputs, self.layout.num_examples)
        rows, rest = divmod(inputs.shape[0], self.layout.num_examples or inputs.shape[0])
        if rest:
            rule = f"must get whole examples, {self.layout.num_examples} of them"
            raise InputError(f"layer {self.layer_name}", rule, f"{inputs.shape[0]} rows")
        parts = torch.split(inputs, self.layout.ghost_batch_size * rows)
        if len(parts) == 1:
            return self._one_ghost(inputs, inputs.shape[0] // rows)
        return torch.cat([self._one_ghost(part, part.shape[0] // rows) for part in parts])

    def _one_ghost(self, inputs: Tensor, num_examples: int) -> Tensor:
        if self.running_mean is None:
            return torch.batch_norm(
                inputs, self.weight, self.bias, None, None,
                True, 0.0, self.eps, torch.backends.cudnn.enabled,
            )  # fmt: skip
        num_features = inputs.shape[1]
        # With momentum 1 torch writes the batch's mean and unbiased variance into the buffers.
        statistics = self.pending.new_zeros(2, num_features)
        outputs = torch.batch_norm(
            inputs, self.weight, self.bias, statistics[0], statistics[1],
            True, 1.0, self.eps, torch.backends.cudnn.enabled,
        )  # fmt: skip
        if self.training and self.layout.counted:
            # One value per channel has no unbiased variance. Backward needs `statistics` unchanged.
            known = 1 if inputs.numel() == num_features else 2
            sums = self.pending
            sums[: known * num_features].add_(statistics[:known].flatten(), alpha=num_examples)
            sums[-1] += num_examples
        return outputs

    def normalized(self, inputs: Tensor) -> Tensor:
        """What the layer gives at scale 1 and shift 0; moves no statistics.

        Args:
            inputs: of the micro-batch that the layout knows of.
        """
        if not self.training and self.running_mean is not None:
            return torch.nn.functional.batch_norm(
                inputs, self.running_mean, self.running_var, training=False, eps=self.eps
            )
        rows = inputs.shape[0] // (self.layout.num_examples or inputs.shape[0])
        ghost = self.layout.ghost_batch_size if self.training else None
        parts = [inputs] if ghost is None else torch.split(inputs, ghost * rows)
        return torch.cat([
            torch.batch_norm(
                part, None, None, None, None,
                True, 0.0, self.eps, torch.backends.cudnn.enabled,
            )
            for part in parts
        ])  # fmt: skip

    def take_step(self, sums: Tensor) -> None:
        """Move the running statistics by the update's summed ghost statistics.

        Args:
            sums: like `pending`, over all ranks; all 0 where no ghost passed, which moves nothing.
        """
        if self.running_mean is None or self.running_var is None:
            return
        dtype = self.running_mean.dtype
        passed = sums[-1].clamp(max=1)  # 1, or 0: on the device, as reading it would synchronize
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += passed.to(self.num_batches_tracked.dtype)
        momentum = passed * 1.0 if self.momentum is None else passed * self.momentum
        if self.momentum is None and self.num_batches_tracked is not None:
            momentum = momentum / self.num_batches_tracked.clamp(min=1)
        mean, variance = (sums[:-1] / sums[-1].clamp(min=1)).to(dtype).view(2, -1)
        self.running_mean.lerp_(mean, momentum.to(dtype))
        self.running_var.lerp_(variance, momentum.to(dtype))


class GhostNormalization:
    """The BatchNorm layers of one model, brought under the ghost law.

    Args:
        model: changed in place: every BatchNorm1d, 2d and 3d becomes a `GhostBatchNorm`.
        ghost_batch_size: examples per ghost; None: each micro-batch is one ghost.
        settings: which statistics are taken, in training and in evaluation.

    Raises:
        InputError: the model itself is a BatchNorm layer, or holds SyncBatchNorm, or, with ghosts,
            a BatchNorm whose forward pass is its own; rules for a model without BatchNorm.

    Attributes:
        layout: what the layers are told of each micro-batch.
        layers: those whose running statistics move.
        found: whether the model holds any BatchNorm.
        couples: whether the examples of a batch meet in one in training.
    """

    def __init__(
        self,
        model: nn.Module,
        ghost_batch_size: int | None,
        settings: BatchNormSettings | None = None,
    ) -> None:
        self.layout = GhostLayout(ghost_batch_size)
        self._settings = settings or BatchNormSettings()
        self.layers: list[GhostBatchNorm] = []
        self.found = self.couples = False
        # Originals are kept beside their replacements, so that no other object takes their id.
        self._replaced: dict[int, tuple[nn.Module, GhostBatchNorm]] = {}
        if isinstance(model, _BatchNorm):
            raise InputError("model", "must hold its BatchNorm inside of another module")
        if any(isinstance(module, GhostBatchNorm) for module in model.modules()):
            raise InputError("build_model", "must return a new model", "one that was trained here")
        self._replace(model, "")
        if not self.found and self._settings != BatchNormSettings():
            raise InputError("batch_norm", "must be left out for a model without BatchNorm")

    def _replace(self, module: nn.Module, prefix: str) -> None:
        # Not `named_children`, which leaves out the second name of a shared layer.
        for name, child in list(module._modules.items()):
            if child is None:
                continue
            path = f"{prefix}.{name}" if prefix else name
            self._refuse(child, path)
            if isinstance(child, _BatchNorm) and id(child) not in self._replaced:
                self._apply_rules(child, path)
                if type(child).forward is not _BatchNorm.forward:
                    self._leave_alone(child, path)
                    continue
                layer = GhostBatchNorm(child, self.layout, path)
                self._replaced[id(child)] = (child, layer)
                if layer.running_mean is not None and not self._settings.frozen:
                    self.layers.append(layer)
            if isinstance(child, _BatchNorm):
                setattr(module, name, self._replaced[id(child)][1])
            elif not isinstance(child, GhostBatchNorm):  # a shared parent, seen before
                self._replace(child, path)

    def _apply_rules(self, child: _BatchNorm, path: str) -> None:
        """Give a layer the mode and the momentum that the recipe's rules ask for."""
        self.found = True
        if self._settings.frozen:
            if child.running_mean is None:
                raise InputError(f"layer {path}", "must have running statistics to be frozen")
            child.eval()
            return
        self.couples = True
        if self._settings.evaluated_with == "last-update":
            child.momentum = 1.0

    def _refuse(self, child: nn.Module, path: str) -> None:
        """Refuse layers whose statistics cannot be brought under the ghost law."""
        if isinstance(child, nn.SyncBatchNorm):
            rule = "must not be SyncBatchNorm"
            raise InputError(f"layer {path}", rule, hint="use BatchNorm and ghost_batch_size")
        if isinstance(child, _InstanceNorm) and child.track_running_stats:
            rule = "must not track running statistics, which would depend on the micro-batches"
            raise InputError(f"layer {path}", rule, type(child).__name__)
        hooks = (child._forward_hooks, child._forward_pre_hooks, child._backward_hooks)
        if isinstance(child, _BatchNorm) and any(hooks):
            rule = "must have no hooks, as the layer is replaced"
            raise InputError(f"layer {path}", rule, hint="put them on the module around it")

    def _leave_alone(self, child: nn.Module, path: str) -> None:
        """Keep a layer whose forward pass is its own (an activation in it, say)."""
        if self.layout.ghost_batch_size is not None:
            rule = "must have torch's own BatchNorm forward pass under ghost_batch_size"
            hint = "without it and with an undivided batch the layer is used as it is"
            raise InputError(f"layer {path}", rule, type(child).__name__, hint=hint)
        if self._settings.evaluated_with == "whole-set":
            rule = "must have torch's own BatchNorm forward pass to be recalibrated"
            raise InputError(f"layer {path}", rule, type(child).__name__)

    def begin(self, num_examples: int, *, counted: bool) -> None:
        """Announce the next micro-batch to the layers."""
        self.layout.num_examples = num_examples
        self.layout.counted = counted

    def discard(self) -> None:
        """Forget the ghosts seen so far; each update's gradient begins with that."""
        for layer in self.layers:
            layer.pending.zero_()

    def take_step(self, world: World, *, together: bool = True) -> None:
        """Move every layer's running statistics once.

        Args:
            world: ranks that share the update.
            together: over all ranks; False: over this rank's own ghosts.

        Collectives: one all-reduce of 2 * channels + 1 values per layer, packed together.
        """
        if not self.layers:
            return
        if world.size == 1 or not together:
            for layer in self.layers:
                layer.take_step(layer.pending)
            return
        packed = torch.cat([layer.pending for layer in self.layers])
        world.sum_in_place(packed)
        sizes = [len(layer.pending) for layer in self.layers]
        for layer, sums in zip(self.layers, torch.split(packed, sizes), strict=True):
            layer.take_step(sums)
