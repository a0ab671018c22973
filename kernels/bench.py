"""Kernels against their peers: `python -m community.kernels.bench --op attention`.

Every operation has a `bench_*.py` that yields cases. All results are compared with the reference
before anything is timed; then all sides run in turns, one thread, and the least time of each
counts (process CPU time on the processor, wall time on a GPU).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from community.errors import CommunityError
from community.kernels import (
    bench_attention,
    bench_entmax,
    bench_experts,
    bench_generation,
    bench_lossless,
    bench_quantized,
    bench_routing,
    bench_training,
)
from community.kernels.backend import backend
from community.kernels.timing import Case, Timing, timed, worst

OPERATIONS: dict[str, Callable[[str, bool], Iterator[Case]]] = {
    "attention": bench_attention.cases,
    "entmax": bench_entmax.cases,
    "experts": bench_experts.cases,
    "generation": bench_generation.cases,
    "lossless": bench_lossless.cases,
    "quantized": bench_quantized.cases,
    "routing": bench_routing.cases,
    "training": bench_training.cases,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m community.kernels.bench", description=__doc__)
    parser.add_argument("--op", choices=sorted(OPERATIONS), nargs="+", help="all without")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--seconds", type=float, default=1.0, help="of timing for each case")
    parser.add_argument("--quick", action="store_true", help="one small size only")
    asked = parser.parse_args(arguments)
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU")
    if asked.json and not asked.json.absolute().parent.is_dir():
        parser.error(f"there is no folder {asked.json.parent} for the figures")
    try:
        name, why = backend(asked.device)
    except CommunityError as error:
        parser.error(str(error))
    torch.set_num_threads(1)
    wanted = asked.op or sorted(OPERATIONS)
    if not _all_match(wanted, asked.device, asked.quick):
        return 1
    print(f"{name} ({why}), one thread; a ratio above 1 means ours is faster")
    rows = []
    for op in wanted:
        for case in OPERATIONS[op](asked.device, asked.quick):
            row = timed(case, asked.device, asked.seconds)
            print(shown(row), flush=True)
            rows.append(_figures(op, row))
    if asked.json:
        figures = {"device": asked.device, "backend": name, "torch": torch.__version__}
        asked.json.write_text(json.dumps({**figures, "cases": rows}, indent=2) + "\n")
    return 0


def _all_match(wanted: list[str], device: str, quick: bool) -> bool:
    """Whether every result is that of the reference; says so."""
    count, wrong = 0, []
    for op in wanted:
        for case in OPERATIONS[op](device, quick):
            found = worst(case)
            count += 1
            if not found <= case.tolerance:
                wrong.append(f"{case.name}: {found:.1e}")
    if wrong:
        print("differs from the reference:", *wrong, sep="\n  ")
    else:
        print(f"all {count} results match the reference")
    return not wrong


def shown(row: Timing) -> str:
    """One line: the case, our milliseconds, and how many times as long each peer takes."""
    ratios = "  ".join(f"{peer} {ratio:.2f}" for peer, ratio in row.ratios.items())
    return f"{row.name:44} {row.ours * 1e3:10.3f} ms   {ratios}   {row.note}".rstrip()


def _figures(op: str, row: Timing) -> dict[str, Any]:
    return {
        "op": op, "name": row.name, "note": row.note,
        "seconds": {"ours": row.ours, **row.peers}, "ratios": row.ratios,
    }  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
