"""What only a GPU can show, in a few minutes, without network or data: `make gpu-check OUT=dir`.

Each check is a function that returns plain values with an "ok"; the results go to OUT/gpu.json. On
a machine without CUDA the checks run on the CPU, which proves the script and nothing else; the
file says so.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import anybatch as ab
from anybatch.training.environment import describe_environment
from anybatch.training.portion import Portion
from anybatch.world import World

Check = Callable[[str], dict[str, Any]]


def _recipe(device: str, **changes: Any) -> ab.Recipe:
    recipe = ab.Recipe(
        optimizer=ab.SGDSettings(lr=0.05, momentum=0.9),
        model=ab.ModelSettings(name="resnet20"),
        batch_size=128,
        ghost_batch_size=32,
        duration=ab.updates(30),
        compute=ab.ComputeSettings(device=device, precision="fp64"),  # type: ignore[arg-type]
    )
    return replace(recipe, **changes)


def _weights(recipe: ab.Recipe) -> torch.Tensor:
    with ab.Training(ab.load_task("digits"), recipe) as training:
        for _ in training:
            pass
        return torch.cat([p.detach().flatten().cpu() for p in training.model.parameters()])


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / one.norm())


def check_accumulation(device: str) -> dict[str, Any]:
    """Micro-batches give the weights of the whole batch, with BatchNorm, in fp64."""
    whole = _weights(_recipe(device))
    parts = _weights(_recipe(device, micro_batch_size=32))
    difference = _difference(whole, parts)
    return {"relative_difference": difference, "ok": difference <= 1e-10}


def check_device_against_cpu(device: str) -> dict[str, Any]:
    """The device trains to the CPU's weights, in fp64, up to the order of sums."""
    difference = _difference(_weights(_recipe(device)), _weights(_recipe("cpu")))
    return {"relative_difference": difference, "ok": difference <= 1e-6}


def check_resume(device: str) -> dict[str, Any]:
    """A run that is continued from its checkpoint ends as the one that was not interrupted."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    task = ab.load_task("digits")
    recipe = _recipe(device, compute=ab.ComputeSettings(device=device, precision="bf16"))  # type: ignore[arg-type]
    try:
        with tempfile.TemporaryDirectory() as folder:
            whole = ab.fit(task, recipe, out=Path(folder) / "whole", progress=False)
            half = replace(recipe, duration=ab.updates(15))
            ab.fit(task, half, out=Path(folder) / "half", progress=False)
            run = ab.resume(Path(folder) / "half", task=task, extend=ab.updates(15), progress=False)
            files = [torch.load(r.path / "weights.pt", weights_only=True) for r in (whole, run)]
        same = all(torch.equal(files[0][key], files[1][key]) for key in files[0])
    finally:
        torch.use_deterministic_algorithms(False)
    return {"bitwise_equal": same, "ok": same}


def check_throughput(device: str) -> dict[str, Any]:
    """Examples per second of ResNet-9 at batch 512, by precision, medians of several updates."""
    images = torch.randint(0, 256, (1024, 32, 32, 3), dtype=torch.uint8)
    normalization_free = images.permute(0, 3, 1, 2).float() / 255.0
    shape = ab.ModelShape(input_shape=(3, 32, 32), num_outputs=10)
    labels = torch.arange(1024) % 10
    task = ab.Task(
        build_model=lambda: ab.build_model("resnet9", shape), train=(normalization_free, labels)
    )
    count = 512 if device == "cuda" else 32
    speeds: dict[str, Any] = {"batch_size": count}
    for precision in ("fp32", "bf16"):
        compute = ab.ComputeSettings(device=device, precision=precision, channels_last=True)  # type: ignore[arg-type]
        recipe = _recipe(device, batch_size=count, ghost_batch_size=count, model=None)
        with ab.Training(task, replace(recipe, compute=compute)) as training:
            speeds[precision] = _examples_per_second(training, count)
    return speeds | {"bf16_over_fp32": speeds["bf16"] / speeds["fp32"], "ok": True}


def _examples_per_second(training: ab.Training, count: int) -> float:
    portion: Portion = training.feed.next()
    seconds = []
    for _ in range(12 if training.world.device.type == "cuda" else 3):
        _synchronize(training.world)
        begun = time.perf_counter()
        training.gradient(portion)
        training.optimizer.step()
        _synchronize(training.world)
        seconds.append(time.perf_counter() - begun)
    return count / statistics.median(seconds[1:])


def _synchronize(world: World) -> None:
    if world.device.type == "cuda":
        torch.cuda.synchronize()


def check_no_synchronization(device: str) -> dict[str, Any]:
    """Between two records an update never waits for the device."""
    if device != "cuda":
        return {"ok": True, "skipped": "needs CUDA"}
    recipe = _recipe(device, compute=ab.ComputeSettings(device="cuda"))
    with ab.Training(ab.load_task("digits"), recipe) as training:
        training.step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                training.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return {"ok": True}


CHECKS: tuple[Check, ...] = (
    check_accumulation,
    check_device_against_cpu,
    check_resume,
    check_throughput,
    check_no_synchronization,
)


def main() -> int:
    """Run every check, write the JSON, and return 0 if all of them held."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json")
    out: Path = parser.parse_args().out
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results: dict[str, Any] = {"device": device}
    results["environment"] = describe_environment(World.from_environment("auto"))
    for check in CHECKS:
        begun = time.perf_counter()
        try:
            result = check(device)
        except Exception:
            result = {"ok": False, "error": traceback.format_exc(limit=3)}
        results[check.__name__] = result | {"seconds": round(time.perf_counter() - begun, 2)}
        print(f"{check.__name__}: {result}", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.json").write_text(json.dumps(results, indent=1) + "\n")
    return 0 if all(results[check.__name__]["ok"] for check in CHECKS) else 1


if __name__ == "__main__":
    sys.exit(main())
