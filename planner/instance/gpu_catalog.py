"""GPUS: memory, bandwidth and arithmetic of common GPUs, so that a cluster file only names them.

From the vendors' data sheets and architecture white papers: nominal memory, memory bandwidth, and
dense 16-bit products on tensor or matrix cores, with 32-bit accumulation where it is stated.
"""

from collections.abc import Mapping

_FIGURES = ("mem_GB", "hbm_GBps", "tflops_dense_16bit")
_TABLE: Mapping[str, tuple[float, float, float]] = {
    # NVIDIA data centre: data sheets of H200, H100, A100, A30, A10, L40, L4, T4, V100
    "H200": (141, 4800, 989),
    "H100": (80, 3350, 989),  # SXM
    "H100-SXM": (80, 3350, 989),
    "H100-PCIe": (80, 2000, 756),
    "A100-80G": (80, 2039, 312),
    "A100-40G": (40, 1555, 312),
    "A40": (48, 696, 149.7),
    "A30": (24, 933, 165),
    "A10": (24, 600, 125),
    "L40": (48, 864, 181),
    "L4": (24, 300, 121),
    "T4": (16, 320, 65),
    "V100-32G": (32, 900, 125),
    "V100-16G": (16, 900, 125),
    # NVIDIA workstation: data sheets of RTX A6000, A5000, A4000
    "A6000": (48, 768, 154.8),
    "A5000": (24, 768, 111.1),
    "A4000": (16, 448, 76.7),
    # NVIDIA GeForce: white papers on Blackwell, Ada, Ampere and Turing
    "5090": (32, 1792, 209.5),
    "4090": (24, 1008, 165.2),
    "4080": (16, 717, 97.5),
    "3090Ti": (24, 1008, 80),
    "3090": (24, 936, 71),
    "3080": (10, 760, 59.5),
    "3070": (8, 448, 40.6),
    "3060-12G": (12, 360, 25.5),
    "2080Ti": (11, 616, 53.8),
    # AMD: data sheets of MI300X and RX 7900 XTX
    "MI300X": (192, 5300, 1307),
    "7900XTX": (24, 960, 122.8),
    # Apple: unified memory, GPU cores only
    "M1": (8, 68, 2.6),
}
GPUS: Mapping[str, Mapping[str, float]] = {
    name: dict(zip(_FIGURES, figures, strict=True)) for name, figures in _TABLE.items()
}
