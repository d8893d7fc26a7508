"""Run a command as on a lesser CPU than this one: without AVX-512, or where there is none, AVX2.

    python scripts/lesser_cpu.py pytest tests/node/engine

torch's own kernels, oneDNN's and numba's are held back by variables of their environment. Exits
with 0 where no lesser CPU can be played, and with 3 where the variables have no effect.
"""

import os
import subprocess
import sys
from collections.abc import Sequence

NO_EFFECT = 3
LESSER = {  # by what torch finds
    "AVX512": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+bmi,+bmi2,+f16c",
    },
    "AVX2": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "NUMBA_CPU_NAME": "generic",
        "NUMBA_CPU_FEATURES": "",
    },
}
FOUND = "import torch; print(torch.backends.cpu.get_cpu_capability())"
# oneDNN says what it takes itself to be with its first primitive; numba what it compiles for
DNN = """
import torch
weight = torch.ops.mkldnn._reorder_linear_weight(torch.ones(16, 16), 1)
torch.ops.mkldnn._linear_pointwise.default(torch.ones(1, 16), weight, None, "none", [], "")
"""
NUMBA = """
from numba.core.registry import cpu_target
print(cpu_target.target_context.codegen().magic_tuple()[1])
"""


def lesser(capability: str) -> dict[str, str]:
    """The variables for a CPU below this one; none if there is none."""
    return LESSER.get(capability, {})


def effect(variables: dict[str, str]) -> tuple[str, str, str]:
    """What torch, oneDNN and numba take this CPU for: capability, instruction set, model."""
    said = _said(DNN, variables | {"ONEDNN_VERBOSE": "1"}).splitlines()
    isa = next((line.rpartition("isa:")[2] for line in said if ",isa:" in line), "unknown")
    return _said(FOUND, variables), isa, _said(NUMBA, variables)


def main(command: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    before = effect({})
    variables = lesser(before[0])
    if not variables:
        print(f"no lesser CPU than this one ({before[0]}) can be played")
        return 0
    after = effect(variables)
    print(f"this CPU is {', '.join(before)}; playing one of {', '.join(after)}", flush=True)
    unheard = [old for old, new in zip(before, after, strict=True) if old == new]
    if unheard:
        print(f"without effect on: {', '.join(unheard)}", file=sys.stderr)
        return NO_EFFECT
    return subprocess.run(command, env=os.environ | variables, check=False).returncode


def _said(code: str, variables: dict[str, str]) -> str:
    run = [sys.executable, "-c", code]
    done = subprocess.run(
        run, env=os.environ | variables, check=True, capture_output=True, text=True, timeout=300
    )
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
