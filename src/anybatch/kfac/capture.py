"""Capture: raw sums of the factors, taken by hooks while a model trains.

A forward hook keeps a layer's input and puts a tensor hook on its output; when the gradient of that
arrives, both sums are added and nothing is kept. So a pass without backward counts nothing,
activations in place and views of outputs are no matter, and each pass through a layer inside of an
activation checkpoint counts once, recomputed or not. Inputs of observed layers live until their
backward, also inside of checkpoints that do not re-enter: there a measurement of the statistics
needs the memory that the checkpoint saves.

Under `torch.compile` hooks must be there before the first call. Passes that are not observed are
compiled whole; observed ones break the graph at every covered layer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from anybatch.errors import InputError
from anybatch.kfac.blocks import FactorShape, FisherBlock
from anybatch.kfac.fisher import Family, output_gradients
from anybatch.kfac.layer_sums import (
    Passage,
    add_input_sum,
    add_output_sum,
    first_examples,
    measured_share,
    num_examples,
    num_rows,
)
from anybatch.kfac.overlap import Departures
from anybatch.kfac.seen import Seen, usual_examples, usual_passed
from anybatch.kfac.stages import Stages
from anybatch.kfac.statistics import accumulation_dtype
from anybatch.recipe_preconditioner import KFACSettings

__all__ = ["Capture"]

_Keep: TypeAlias = Callable[..., Tensor | None]


@final
class Capture:
    """Hooks on the layers of blocks, and the raw sums of what they have seen since `clear`.

    Args:
        blocks: of `find_blocks`; hooks stay on their modules until `remove`.
        settings: sharing, and fisher: unless "empirical", G and F come from `add_model_statistics`.
        rank: of this process, so that ranks draw different labels.
        stages: takes the seconds of the sums; None: nobody does.

    Attributes:
        observing: whether passes count; asked in forward and again in backward.
        wanted: names of the factors that are measured; None: all.
        sums: raw sums by the name of the factor (see `statistics`).
        rows: outer products in S_G by the name of the block; examples * positions of a norm.
        fired: blocks to which a gradient came.
        departures: of the last backward pass, whose sums leave when they are complete; None: they
            stay.

    Raises:
        InputError: in backward: a second gradient of the same pass, or an input changed in place.

    Example:
        >>> from anybatch.kfac.blocks import find_blocks
        >>> model = nn.Sequential(nn.Linear(2, 1, bias=False))
        >>> capture = Capture(find_blocks(model, KFACSettings()).blocks, KFACSettings())
        >>> capture.observing = True
        >>> model(torch.tensor([[1.0, 2.0], [0.0, 1.0]])).mean().backward()
        >>> capture.sums["0.A"], capture.examples
        (tensor([[[1., 2.],
                  [2., 5.]]]), 2)
    """

    def __init__(
        self,
        blocks: Sequence[FisherBlock],
        settings: KFACSettings,
        *,
        rank: int = 0,
        stages: Stages | None = None,
    ) -> None:
        self._stages = stages or Stages(torch.device("cpu"))
        self._blocks, self._settings, self._rank = tuple(blocks), settings, rank
        self.observing = False
        self.wanted: frozenset[str] | None = None
        self.sums: dict[str, Tensor] = {}
        self.rows: dict[str, int] = {}
        self.fired: set[str] = set()
        self._seen: dict[str, Seen] = {}
        self.departures: Departures | None = None
        self._outstanding: dict[str, int] = {}  # passages of a block that await their gradient
        self._open: dict[Passage, GradientEdge] = {}
        self._only_model = False
        self._update = 0  # counts `clear`: passes before it have been forgotten
        self._seed, self._draws = torch.initial_seed(), 0
        # Dynamo must run what happens in a hook, not trace it.
        keep: _Keep = torch.compiler.disable(self._keep)  # type: ignore[no-untyped-call]
        self._handles = [
            module.register_forward_hook(self._forward_hook(block, keep), with_kwargs=True)
            for block in self._blocks
            for module in block.modules
        ]

    def _forward_hook(self, block: FisherBlock, keep: _Keep) -> _Keep:
        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
        ) -> Tensor | None:
            if self.observing and torch.is_grad_enabled():
                return keep(block, module, args, kwargs, output)
            return None

        return hook

    def _keep(
        self,
        block: FisherBlock,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Tensor,
    ) -> Tensor | None:
        """Await the gradient of a layer's output; gives an output that is no view in its place."""
        belongs = any(module is each for each in block.modules)  # a copied model has our hooks too
        if not belongs or not output.requires_grad:  # of what is not wanted, examples count
            return None
        replaced = None
        if output._is_view():
            # A change in place of a view goes around the view's own node, and so around its hooks.
            output = replaced = torch.ops.aten._unsafe_view(output, output.shape)
        passage = Passage(block, module, args[0] if args else next(iter(kwargs.values())))
        recomputed = torch._C._current_graph_task_id() != -1
        if self._settings.fisher != "empirical" and not recomputed:
            self._open[passage] = get_gradient_edge(output)
        waiting = [passage]
        self._outstanding[block.name] = self._outstanding.get(block.name, 0) + 1
        output.register_hook(  # type: ignore[no-untyped-call]
            lambda gradient, update=self._update: self._arrived(waiting, block, gradient, update)
        )
        return replaced

    def _wanted(self, block: FisherBlock) -> list[FactorShape]:
        wanted = self.wanted
        return [each for each in block.factors if wanted is None or each.name in wanted]

    def _arrived(
        self, waiting: list[Passage], block: FisherBlock, gradient: Tensor, update: int
    ) -> None:
        """Add the sums of one passage; its inputs are let go."""
        if not self.observing or self._only_model or update != self._update:
            return
        if not waiting:
            rule = "must get the gradient of each pass once"
            hint = "one backward per forward pass while statistics are taken"
            raise InputError(f"layer {block.name}", rule, "a second one", hint=hint)
        passage = waiting.pop()
        self._outstanding[block.name] -= 1
        self._open.pop(passage, None)
        passage.check_inputs()
        with self._stages.of("statistics"), torch.no_grad():
            passed = num_examples(passage)
            passage, gradient = first_examples(passage, gradient, self._settings.batch_share)
            seen = self._seen.get(block.name, Seen())
            self._seen[block.name] = seen.and_one_of(passed, self._settings.batch_share)
            rows = num_rows(passage, gradient, self._settings.sharing)
            if num_examples(passage) == passed:  # all is there, and weighs as the measured part
                rows = round(rows * measured_share(passage, self._settings.batch_share))
            self.rows[block.name] = self.rows.get(block.name, 0) + rows
            self.fired.add(block.name)
            for factor in self._wanted(block):
                if self.departures is not None:
                    self.departures.check(factor.name)
                if factor.role == "A":
                    self._add_input(factor, passage, gradient)
                elif self._settings.fisher == "empirical":
                    self._add_output(factor, passage, gradient)
        self._let_leave(block)

    def _let_leave(self, block: FisherBlock) -> None:
        """Hand in the sums of a block that awaits no further gradient, in the last pass."""
        if self.departures is None or self._outstanding[block.name]:
            return
        for factor in self._wanted(block):
            if factor.name in self.sums:  # else nobody has shown the model's outputs
                self.departures.ready(factor.name, self.sums[factor.name])

    def _add_input(self, factor: FactorShape, passage: Passage, like: Tensor) -> None:
        """S_A of one passage, whose examples were chosen before."""
        total, share = self._total(factor, like), self._settings.batch_share
        if share < 1 and passage.block.kind == "embedding":  # which is measured whole
            own = torch.zeros_like(total)
            add_input_sum(own, factor, passage, self._settings.sharing)
            total.add_(own, alpha=measured_share(passage, share))
        else:
            add_input_sum(total, factor, passage, self._settings.sharing)

    def _add_output(self, factor: FactorShape, passage: Passage, gradient: Tensor) -> None:
        """S_G or S_F of one passage, whose examples were chosen before."""
        total = self._total(factor, gradient)
        add_output_sum(total, passage, gradient, self._settings.sharing)

    def _total(self, factor: FactorShape, like: Tensor) -> Tensor:
        total = self.sums.get(factor.name)
        if total is None:
            dtype = accumulation_dtype(like.dtype)
            total = self.sums[factor.name] = like.new_zeros(factor.shape, dtype=dtype)
        return total

    def add_model_statistics(
        self,
        outputs: Tensor,
        family: Family,
        kind: Literal["sampled", "exact"] | None = None,
        generator: torch.Generator | None = None,
        scale: float = 1.0,
    ) -> None:
        """Add S_G and S_F of the model's own distribution, of all passes that led to the outputs.

        To be called between forward and backward, which keeps its graph. These are gradients of
        one example's loss, not of a weighted sum: their D is 1. `rows` is left to the backward that
        follows.

        Args:
            outputs: of the model, with their graph (see `output_gradients`).
            family: distribution whose negative log-likelihood the loss is.
            kind: None: as the settings say.
            generator: of the draws; None: one of its own, which `state_dict` carries on.
            scale: that the gradients are multiplied by: sqrt(positions) where each is an example.

        Cost:
            One backward pass to the layers' outputs for "sampled", one for each output for "exact".

        Raises:
            InputError: outputs without a graph, or with one that cannot be walked twice. (Layers in
                checkpoints that re-enter have no graph before backward: they are missing.)
        """
        passages = [each for each in self._open if self._output_factor(each.block)]
        if not passages or not self.observing:
            return
        fisher = self._settings.fisher
        chosen = kind or ("exact" if fisher == "exact" else "sampled")
        if chosen == "sampled" and generator is None:
            generator = self._next_generator(outputs.device)
        edges = [self._open[each] for each in passages]
        for vector in output_gradients(outputs, family, chosen, generator):
            gradients = self._gradients(outputs, edges, vector * scale)
            for passage, gradient in zip(passages, gradients, strict=True):
                factor = self._output_factor(passage.block)
                if gradient is None or factor is None:
                    continue
                with self._stages.of("statistics"), torch.no_grad():
                    share = self._settings.batch_share
                    self._add_output(factor, *first_examples(passage, gradient, share))

    def _output_factor(self, block: FisherBlock) -> FactorShape | None:
        return next((each for each in self._wanted(block) if each.role != "A"), None)

    def _gradients(
        self, outputs: Tensor, edges: Sequence[GradientEdge], vector: Tensor
    ) -> tuple[Tensor | None, ...]:
        self._only_model = True
        try:
            return torch.autograd.grad(outputs, edges, vector, retain_graph=True, allow_unused=True)
        except RuntimeError as error:
            rule = "must have a graph that can be walked twice for a Fisher that is not empirical"
            raise InputError("model output", rule, str(error)) from error
        finally:
            self._only_model = False

    def draw_from(self, update: int) -> None:
        """Number the draws of an update: the same afterwards, however many a rank made."""
        self._draws = update << 32

    def _next_generator(self, device: torch.device) -> torch.Generator:
        """Draws that depend on seed, rank, and the number of draws before."""
        text = f"{self._seed} {self._rank} {self._draws}"
        self._draws += 1
        return torch.Generator(device).manual_seed(random.Random(text).getrandbits(63))

    @property
    def examples(self) -> int:
        """N: examples that were measured (see `usual_examples`)."""
        return usual_examples(self._seen)

    @property
    def passed(self) -> int:
        """Examples that have passed, measured or not: of which `batch_share` takes a part."""
        return usual_passed(self._seen)

    def missing(self) -> tuple[str, ...]:
        """Names of the blocks that lack a wanted sum: no pass, or no gradient, came to them."""
        return tuple(
            block.name
            for block in self._blocks
            if any(factor.name not in self.sums for factor in self._wanted(block))
        )

    def clear(self) -> None:
        """Forget all sums, and passes that have had no backward."""
        self.sums, self.rows, self.fired, self._seen = {}, {}, set(), {}
        self.departures, self._outstanding = None, {}
        self._open.clear()  # edges hold their graph
        self._update += 1

    def remove(self) -> None:
        """Take the hooks away and forget all."""
        self.observing = False
        self.clear()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def state_dict(self) -> dict[str, int]:
        """Seed and number of draws; the same on every rank."""
        return {"seed": self._seed, "draws": self._draws}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on drawing where `state_dict` was taken."""
        self._seed, self._draws = state["seed"], state["draws"]
