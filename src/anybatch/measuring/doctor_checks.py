"""What the doctor concludes from numbers. Pure rules: each makes one row, nothing is run here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = [
    "Check",
    "activation_scale",
    "batch_size",
    "class_balance",
    "dead_units",
    "duplicates",
    "features",
    "frozen_and_tied",
    "gradients",
    "initial_loss",
    "input_scale",
    "leak",
    "loader",
    "metric_direction",
    "normalization_batch",
    "one_batch",
    "same_input_other_target",
    "skipped",
    "threads",
]

_NAMED = 4  # things listed by name


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the doctor's answer.

    Attributes:
        name: with hyphens; that of the finding too.
        is_ok: whether nothing is wrong.
        value: what was seen, as a number; nan where there is none.
        expected: what it was compared with; nan where there is nothing.
        text: what was seen, in words.
        advice: what to do, where something is wrong.
    """

    name: str
    is_ok: bool
    value: float
    expected: float
    text: str
    advice: str = ""


def skipped(name: str, reason: str) -> Check:
    """A row of something that was not looked at.

    Args:
        name: of the check.
        reason: why not.
    """
    return Check(name, True, math.nan, math.nan, f"not looked at: {reason}")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


# --- data --------------------------------------------------------------------------------------


def input_scale(mean: float, deviation: float, not_finite: int) -> Check:
    """Inputs of mean about 0 and standard deviation about 1, all of them finite.

    Wrong: a deviation outside of [0.05, 20], or a mean further than 3 deviations from 0.

    Args:
        mean: of all elements.
        deviation: of all elements.
        not_finite: examples with an element that is not finite.
    """
    if not_finite:
        text = f"{not_finite} examples hold nan or inf"
        return Check("inputs", False, not_finite, 0.0, text, "mend or leave out these examples")
    text = f"mean {mean:.3g}, standard deviation {deviation:.3g}"
    is_ok = 0.05 <= deviation <= 20.0 and abs(mean) <= 3.0 * deviation
    advice = "standardize the inputs: subtract the mean, divide by the standard deviation"
    return Check("inputs", is_ok, deviation, 1.0, text, advice)


def features(constant: int, total: int, spread: float) -> Check:
    """Columns that never change, or that are measured in units far apart.

    Args:
        constant: features with the same value in every example.
        total: features.
        spread: largest over smallest standard deviation of the others.
    """
    name, advice = "features", "leave constant columns out"
    if constant:
        text = f"{constant} of {total} features have one value in every example"
        return Check(name, False, constant, 0.0, text, advice)
    text = f"{total} features; standard deviations within a factor {spread:.3g}"
    advice = "standardize each feature by itself"
    return Check(name, not spread > 100.0, spread, 100.0, text, advice)


def class_balance(counts: Sequence[int], *, kind: str, outputs: int, is_whole: bool) -> Check:
    """Labels: one class alone, classes with one example, classes never seen, imbalance.

    Args:
        counts: examples of each class, in order.
        kind: what the labels are of, in words ("20,000 examples").
        outputs: classes of the model; 0 where that is not known.
        is_whole: whether that is all of train; else a rare class may not have been seen.
    """
    name, seen = "labels", [count for count in counts if count]
    if len(seen) <= 1:
        text = f"all of {kind} are of one class: there is nothing to learn"
        return Check(name, False, len(seen), outputs, text, "look at how the labels are read")
    share = max(seen) / sum(seen)
    single = [str(label) for label, count in enumerate(counts) if count == 1]
    if single and is_whole:
        text = f"classes with one example of {kind}: {_listed(single)}"
        advice = "leave these classes out or gather more: they cannot be learned and validated"
        return Check(name, False, len(single), 0.0, text, advice)
    if len(seen) < outputs and is_whole:
        text = f"{len(seen)} of the model's {outputs} classes occur in {kind}"
        advice = "give the model as many outputs as there are classes, or look for the others"
        return Check(name, False, len(seen), outputs, text, advice)
    text = f"{len(seen)} classes, the largest {share:.1%} of {kind}"
    ratio = max(seen) / min(seen)
    advice = f"compare every accuracy with {share:.1%}, or weigh the classes in the loss"
    return Check(name, ratio <= 20.0, ratio, 20.0, text, advice)


def constant_targets(mean: float, deviation: float) -> Check:
    """Targets of a regression that never change.

    Args:
        mean: of all targets.
        deviation: of all targets.
    """
    text = f"mean {mean:.3g}, standard deviation {deviation:.3g}"
    is_ok = deviation > 1e-6 * max(1.0, abs(mean))
    return Check("labels", is_ok, deviation, 1.0, text, "look at how the targets are read")


def duplicates(copies: int, looked_at: int) -> Check:
    """Examples of train that come again, bit for bit; wrong above 1 %.

    Args:
        copies: examples whose inputs came before.
        looked_at: examples.
    """
    share = copies / max(1, looked_at)
    text = f"{copies} of {looked_at:,} training inputs came before"
    advice = "keep each one once, unless it is meant to weigh more"
    return Check("duplicates", share <= 0.01, share, 0.01, text, advice)


def leak(split: str, shared: int, looked_at: int, of_train: int) -> Check:
    """Held-out examples that are in train, bit for bit; wrong above 0.1 %.

    Args:
        split: "validation" or "test".
        shared: its examples whose inputs are also in train.
        looked_at: its examples.
        of_train: training examples that they were compared with.
    """
    share = shared / max(1, looked_at)
    text = f"{shared} of {looked_at:,} {split} inputs are among {of_train:,} of train"
    advice = f"take them out of train: what they say about {split} is memory"
    return Check(f"{split}-in-train", share <= 0.001, share, 0.001, text, advice)


def same_input_other_target(number: int, looked_at: int) -> Check:
    """Equal inputs with different targets; wrong above 0.1 %.

    Args:
        number: examples whose inputs came before with another target.
        looked_at: examples.
    """
    share = number / max(1, looked_at)
    text = f"{number} of {looked_at:,} inputs came before with another target"
    advice = "look at these labels: no model can fit both"
    return Check("contradictions", share <= 0.001, share, 0.001, text, advice)


def batch_size(size: int, available: int | None) -> Check:
    """Whether an epoch holds more than a few updates.

    Args:
        size: examples of an update.
        available: of the training split; None for a stream.
    """
    if available is None:
        return Check("batch-size", True, size, math.nan, f"{size} of a stream")
    text = f"{size} of {available:,} examples: {-(-available // size)} updates an epoch"
    return Check("batch-size", size <= available, size, available, text, "--set batch_size=full")


# --- model -------------------------------------------------------------------------------------


def initial_loss(loss: float, expected: float, *, meaning: str, is_trained: bool) -> Check:
    """The loss before training against that of a model that knows nothing.

    Classification: outside of [0.7, 1.5] ln C (+ 0.5); regression: a factor 10 from the variance.
    A model that has been trained may be below.

    Args:
        loss: mean over some training examples.
        expected: ln C, or the variance of the targets; nan where it is not known.
        meaning: what was expected, in words.
        is_trained: whether updates were taken before.
    """
    name = "initial-loss"
    if not math.isfinite(loss):
        advice = "look for a logarithm of 0, a division by 0 or inputs that are not finite"
        return Check(name, False, loss, expected, "the loss is not finite", advice)
    if not math.isfinite(expected):
        return Check(name, True, loss, expected, f"{loss:.4g}; the loss is the task's own")
    regression = meaning.startswith("variance")
    low, high = (
        (expected / 10.0, 10.0 * expected) if regression else (0.7 * expected, 1.5 * expected + 0.5)
    )
    text = f"{loss:.4g}; {meaning} is {expected:.4g}"
    if loss > high:
        advice = (
            "standardize the targets, or begin with smaller weights in the last layer"
            if regression
            else "begin with smaller weights in the last layer, and look at the labels"
        )
        return Check(name, False, loss, expected, text, advice)
    advice = "see whether the inputs hold the target, or the model was trained before"
    return Check(name, is_trained or loss >= low, loss, expected, text, advice)


def gradients(without: Sequence[str], total: int) -> Check:
    """Whether every trainable parameter gets a gradient.

    Args:
        without: names of those that got none, or only zeros.
        total: trainable parameters.
    """
    if not without:
        return Check("gradients", True, total, total, f"reach all {total} trainable tensors")
    text = f"{len(without)} of {total} trainable tensors get none: {_listed(without)}"
    advice = "use them in forward, or set requires_grad = False; look for detach() and no_grad()"
    return Check("gradients", False, total - len(without), total, text, advice)


def frozen_and_tied(frozen: Sequence[str], tied: Sequence[str], total: int) -> Check:
    """Parameters that stay as they are, and those with several names. Never wrong by itself.

    Args:
        frozen: names of parameters that ask for no gradient.
        tied: "first = second" for each shared parameter.
        total: parameters.
    """
    parts = [f"{total} tensors"]
    if frozen:
        parts.append(f"{len(frozen)} frozen: {_listed(frozen)}")
    if tied:
        parts.append(f"tied: {_listed(tied)}")
    return Check("parameters", True, len(frozen), math.nan, "; ".join(parts))


def one_batch(start: float, end: float, updates: int, lr: float, *, in_time: bool) -> Check:
    """Whether a batch can be learned by heart: its loss falls by 90 % or more.

    Args:
        start: loss before.
        end: lowest loss reached.
        updates: taken at the best lr.
        lr: the best one that was tried.
        in_time: whether every lr was tried to its end.
    """
    fall = 1.0 - end / start if start > 0.0 and math.isfinite(end) else math.nan
    text = f"loss {start:.3g} to {end:.3g} in {updates} updates at lr {lr:.3g}"
    if not end < start:
        fall, text = math.nan, f"the loss of {start:.3g} does not fall at any lr"
    if not fall >= 0.9 and not in_time:
        return Check("one-batch", True, fall, 0.9, f"{text}; not decided in the time")
    advice = "look for detached tensors, wrong labels, a loss of the wrong shape; then --seconds 10"
    return Check("one-batch", fall >= 0.9, fall, 0.9, text, advice)


def metric_direction(name: str, direction: str, before: float, after: float) -> Check:
    """Whether the metric went the way that its direction calls better while a batch was learned.

    Args:
        name: of the metric.
        direction: "max" or "min".
        before: on the batch.
        after: on the same batch, learned.
    """
    gain = (after - before) if direction == "max" else (before - after)
    text = f"{name} ({direction}) from {before:.3g} to {after:.3g} on a batch learned by heart"
    other = "min" if direction == "max" else "max"
    is_ok = not gain < -0.01 * max(abs(before), abs(after))
    return Check("metric", is_ok, gain, 0.0, text, f'give the Metric direction="{other}"')


def dead_units(dead: Mapping[str, tuple[int, int]], num_examples: int) -> Check:
    """Units after a ReLU that no example makes fire; wrong above 20 % of a layer.

    Args:
        dead: by layer: how many never fire, of how many.
        num_examples: that were shown.
    """
    if not dead:
        return Check("dead-units", True, 0.0, 0.2, "the model has no ReLU")
    shares = {layer: never / max(1, total) for layer, (never, total) in dead.items()}
    worst = max(shares, key=lambda layer: shares[layer])
    never, total = (sum(counts) for counts in zip(*dead.values(), strict=True))
    text = f"{never} of {total} never fire on {num_examples} examples"
    if never:
        text += f"; {worst}: {dead[worst][0]} of {dead[worst][1]}"
    advice = "standardize the inputs, begin with smaller biases, or lower the lr"
    return Check("dead-units", shares[worst] <= 0.2, shares[worst], 0.2, text, advice)


def activation_scale(deviations: Mapping[str, float]) -> Check:
    """Standard deviation of each layer's outputs; wrong beyond a factor 1,000 between layers.

    Args:
        deviations: by layer, in the order of the forward pass.
    """
    known = {layer: value for layer, value in deviations.items() if value != 0.0}
    if not known:
        return Check("activations", True, math.nan, 1000.0, "no layer's outputs vary")
    if not all(map(math.isfinite, known.values())):
        first = next(layer for layer, value in known.items() if not math.isfinite(value))
        advice = "look at that layer and its inputs"
        return Check("activations", False, math.inf, 1000.0, f"not finite after {first}", advice)
    least, most = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
    ratio = known[most] / known[least]
    text = f"deviations from {known[least]:.2g} ({least}) to {known[most]:.2g} ({most})"
    advice = "use an initialization by fan-in, normalization layers or residual connections"
    return Check("activations", ratio <= 1000.0, ratio, 1000.0, text, advice)


def normalization_batch(size: int | None) -> Check:
    """Examples that share BatchNorm's statistics; wrong below 8.

    Args:
        size: of a ghost, or of the batch; None without BatchNorm.
    """
    if size is None:
        return Check("batch-norm", True, math.nan, 8.0, "the model has none")
    text = f"{size} examples share statistics"
    advice = "--set batch_size=32, or GroupNorm instead"
    return Check("batch-norm", size >= 8, size, 8.0, text, advice)


# --- machine -----------------------------------------------------------------------------------


def threads(seconds: Mapping[int, float], present: int) -> Check:
    """Whether another number of threads makes an update faster, by more than a quarter.

    Args:
        seconds: of an update, by number of threads.
        present: threads that the recipe uses.
    """
    best = min(seconds, key=seconds.__getitem__)
    ratio = seconds[present] / seconds[best]
    text = "; ".join(f"{count}: {1e3 * value:.3g} ms" for count, value in seconds.items())
    advice = f"--set compute.threads={best}"
    return Check("threads", ratio <= 1.25, ratio, 1.25, f"an update with {text}", advice)


def loader(loading: float, computing: float, workers: int) -> Check:
    """Whether an update waits for its data longer than it computes.

    Args:
        loading: examples per second of the loader alone.
        computing: examples per second of the updates alone.
        workers: loader processes.
    """
    share = computing / (loading + computing) if loading > 0.0 else 1.0
    text = f"loads {loading:,.0f} examples/s, computes {computing:,.0f}"
    advice = f"--set compute.num_workers={max(2, 2 * workers)}"
    return Check("loader", share <= 0.5, share, 0.5, text, advice)
