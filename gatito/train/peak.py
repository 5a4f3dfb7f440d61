"""How many FLOPs per second a device could do: what a run reaches of them is its MFU."""

import time
from functools import cache

import torch

TENSOR_CORES = {
    "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200 NVL": 835e12, "H200": 989e12,
    "GB200": 2500e12, "B200": 2250e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12,
}  # fmt: skip
"""Dense bf16 FLOPs per second that vendors state, by a part of the device's name; the first that fits counts."""
SIZE, REPEATS = 1024, 5


def peak_flops(device: torch.device, precision: str) -> float:
    """FLOPs per second: what the vendor states, or, where that is not known, what a matrix product reaches."""
    if device.type == "cuda" and precision == "bf16":
        name = torch.cuda.get_device_name(device)
        stated = [rate for part, rate in TENSOR_CORES.items() if part in name]
        if stated:
            return stated[0]
    return _measured(device, precision, torch.get_num_threads())


@cache
def _measured(device: torch.device, precision: str, num_threads: int) -> float:
    """The best of a few products of matrices of 1024 x 1024, on as many threads as the run has."""
    matrix = torch.randn(SIZE, SIZE, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    best = float("inf")
    for _ in range(REPEATS):
        began = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # waits for it
        best = min(best, time.perf_counter() - began)
    return 2 * SIZE**3 / best
