"""On an accelerator, in less than eight minutes: first the tests that need one, then the time of steered U-Nets.

    python -m benchmarks.accelerator [--seconds 460] [--device cuda] [--small] [--skip-tests] [--most 4096] [--out FILE]

The U-Net of Stable Diffusion with random weights (its text width apart) in half precision, and one of a tenth of its
width in float32, from 16 to 4,096 particles: CFG with PAG, and Feynman-Kac steering with CFG; at last the latter with
compile=True, at 64 particles. Each case is one run of two steps after a run that warms up; `waiting` is the share of a
run by which the host is ahead when all has been asked for (0 where every step waits for the device). A case that would
not fit into the time that is left is left out, and said so. Results are written after every case, so that nothing is
lost if the machine goes. With --device cpu --small --most 16 the whole script, its tests included, runs on any host in
a few minutes, to see that it can run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import guidekit as gk
from rewards.base import needs

RESULTS = Path(__file__).parent / "results" / "accelerator.json"
PROMPT, STEPS, BATCH = "a red fox in snow", 2, 96
COMPILING = 90.0  # seconds that are left for it, or it is left out
SIZES = {"tenth": (64, 128, 128), "full": (320, 640, 1280, 1280)}


def model(size: str, device: str, small: bool) -> gk.Model:
    """Stable Diffusion with random weights and a text encoder of 32 numbers a word."""
    diffusers = needs("diffusers", "diffusers", "this benchmark")
    pipe = gk.integrations.diffusers.tiny("sd", diffusers.DDIMScheduler(clip_sample=False, steps_offset=1))
    width = (32, 32) if small else SIZES[size]
    blocks = len(width) - 1
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=16 if small else 64,
        block_out_channels=width,
        layers_per_block=2 if size == "full" and not small else 1,
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=16,
        down_block_types=("CrossAttnDownBlock2D",) * blocks + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * blocks,
    ).eval()
    pipe.register_modules(unet=unet)
    pipe.set_progress_bar_config(disable=True)
    half = size == "full" and device != "cpu"
    return gk.from_diffusers(pipe.to(device, torch.float16 if half else torch.float32))


def guides(which: str) -> list[gk.Guide]:
    if which == "CFG + PAG":
        return [gk.CFG(5.0), gk.PAG(3.0)]
    return [gk.CFG(5.0), gk.FKSteering(_bright, 0.1, ess=1.0)]


def _bright(x: torch.Tensor) -> torch.Tensor:
    return x.double().flatten(1).mean(1)


def timed(base: gk.Model, which: str, n: int, device: str) -> dict[str, float]:
    """Seconds of a run, and by how much the host is ahead of the device when it has asked for all."""
    wait = torch.cuda.synchronize if device != "cpu" else lambda: None
    options: dict[str, Any] = {"steps": STEPS, "cond": PROMPT, "batch_size": BATCH, "solver": gk.solvers.DDPM()}
    backend = False if "compiled" not in which else True if device != "cpu" else "aot_eager"
    run = gk.Run(base, n, guides=guides(which), compile=backend, **options)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    with run.borrowed():
        wait()
        began = time.perf_counter()
        population = run.start()
        for index in range(len(run.moves)):
            population = run.advance(population, index)
        asked = time.perf_counter() - began
        wait()
        spent = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated() / 1e9 if device != "cpu" else 0.0
    rows = run.cost.network_rows
    return {
        "seconds": round(spent, 4), "rows": rows, "rows a second": round(rows / spent, 1),
        "waiting": round(1 - asked / spent, 3), "peak GB": round(peak, 2),
    }  # fmt: skip


def tested(seconds: float, device: str) -> dict[str, Any]:
    """The tests that need a device."""
    given = os.environ | {"GUIDEKIT_TEST_DEVICE": device}
    command = [sys.executable, "-m", "pytest", "-q", "--tb=line", "-m", "gpu", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run([*command, "tests/test_gpu.py"], capture_output=True, timeout=seconds, env=given)
    except subprocess.TimeoutExpired as stopped:
        return {"ended": f"after {seconds:.0f} s", "told": (stopped.stdout or b"").decode()[-6000:]}
    return {"ended": done.returncode, "told": done.stdout.decode()[-6000:]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=460.0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny networks, to try the script without a device")
    parser.add_argument("--skip-tests", action="store_true")
    parser.add_argument("--most", type=int, default=4096, help="the largest number of particles")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    ends = time.monotonic() + given.seconds
    name = torch.cuda.get_device_name() if given.device != "cpu" else "cpu"
    found: dict[str, Any] = {"device": name, "torch": torch.__version__, "small": given.small, "cases": {}}
    if not given.skip_tests:
        found["tests"] = tested(given.seconds / 2, given.device)
        _write(found, given.out)
    for size in SIZES:
        base, each = model(size, given.device, given.small), 0.0
        for n in (n for n in (16, 64, 256, 1024, 4096) if n <= given.most):
            for which in ("CFG + PAG", "CFG + FK"):
                found["cases"][f"{size}, {which}, {n}"] = _case(base, which, n, given.device, each, ends)
                each = max(each, found["cases"][f"{size}, {which}, {n}"].get("seconds", 0.0) / n)
                _write(found, given.out)
    for size in SIZES:
        base, n, which = model(size, given.device, given.small), min(64, given.most), "CFG + FK, compiled"
        found["cases"][f"{size}, {which}, {n}"] = _case(base, which, n, given.device, COMPILING / n, ends)
        _write(found, given.out)
    print(json.dumps(found, indent=1))


def _case(base: gk.Model, which: str, n: int, device: str, each: float, ends: float) -> dict[str, Any]:
    """One case, unless it would take more than is left."""
    left = ends - time.monotonic()
    if 1.2 * each * n > left - 5:
        return {"left out": f"{each * n:.0f} s expected, {left:.0f} s left"}
    if each == 0 or "compiled" in which:
        timed(base, which, n, device)  # warms up
    return timed(base, which, n, device)


def _write(found: dict[str, Any], file: Path) -> None:
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
