"""What a replay costs after a stage is lost: `python -m benchmarks.replay [--ids 1024]`.

Two ways, in turns, over two nodes on loopback with half of the layers each:

* whole: the client replays prompt and generated ids, and both stages compute them, chunk by chunk
  one behind the other (what a session does);
* lost stage only: as if its predecessor had kept every hidden row. Its rows and ids travel to the
  new holder, which alone computes. A node with only those layers, and ids in place of rows, would
  be another model, so that the engine of one stage computes the same chunks in this process, and
  the bytes of the rows are sent through both libp2p daemons.
"""

import argparse
import asyncio
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
import uvloop

from benchmarks.hop import BODY, hop_seconds
from benchmarks.models import model_folder, prompt_ids
from benchmarks.report import Report
from benchmarks.small_swarm import small_swarm
from node.engine.kv_cache.prefix_cache import Prompt
from node.engine.shard_io import StageSpec, StepItem
from node.engine.stage_runner import StageRunner
from swarm.checkpoint.folder import read_spec
from swarm.model_spec import BUILT_IN, ModelSpec
from swarm.wire.messages import CHUNK_CAP
from swarm.wire.sampling_params import Sampling

ROUNDS = 5
HOPS = 200
BUDGET_BYTES = 4 << 30
VALUE_BYTES = 4  # of a hidden row in f32


def lost_stage(folder: Path, spec: ModelSpec) -> StageRunner:
    """The second half of the layers, as its new holder has them."""
    kv, mlp = (0, spec.kv_heads), (0, spec.mlp_blocks)
    stage = StageSpec(folder, spec.layers // 2, spec.layers, 0, kv, mlp, "f32")
    return StageRunner.load(stage, budget_bytes=BUDGET_BYTES)


def seconds_alone(runner: StageRunner, ids: list[int], hidden: int) -> float:
    """How long the new holder computes, if all rows lie ready."""
    torch.set_num_threads(1)  # of this very thread
    rows = torch.full((len(ids), hidden), 0.01)  # [ids, hidden]
    sampling = Sampling(max_tokens=1)
    runner.open("s", capacity=len(ids) + 1, history=ids, generated=0, sampling=sampling)
    runner.share("s", Prompt.of("nobody", ids))
    start = perf_counter()
    for place in range(0, len(ids), CHUNK_CAP):
        chunk = rows[place : place + CHUNK_CAP]
        runner.step([StepItem("s", place, chunk, place + len(chunk) == len(ids))])
    seconds = perf_counter() - start
    runner.close("s")
    return seconds


async def run(ids: int, folder: Path, report: Report) -> None:
    """Both ways in turns; medians."""
    spec = read_spec(folder, folder.name)
    runner = lost_stage(folder, spec)
    per_byte = median(await hop_seconds(HOPS)) / len(BODY)
    whole, alone = [], []
    async with small_swarm(spec, folder) as swarm:
        await swarm.ask(prompt_ids(ids, 1000), 1)
        for number in range(ROUNDS):
            prompt = prompt_ids(ids, number)  # of its own: no stage holds any of its rows
            whole.append((await swarm.ask(prompt, 1)).ttft_seconds)
            alone.append(await asyncio.to_thread(seconds_alone, runner, prompt, spec.hidden))
    row_bytes = ids * spec.hidden * VALUE_BYTES
    travel = row_bytes * per_byte
    report.add("whole", "both stages, chunk by chunk", median(whole), "s")
    report.add("lost stage only", "computing", median(alone), "s")
    report.add("lost stage only", "rows on loopback", travel, "s")
    report.add("lost stage only", "rows that the predecessor keeps", row_bytes / 2**20, "MiB")
    report.add("ratio", "lost stage only / whole", (median(alone) + travel) / median(whole), "")


def main() -> int:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--ids", type=int, default=1024)
    parser.add_argument("--model", default=BUILT_IN)
    parser.add_argument("--cache", type=Path, default=Path())
    arguments = parser.parse_args()
    report = Report("what a replay costs")
    uvloop.run(run(arguments.ids, model_folder(arguments.model, arguments.cache), report))
    report.show()
    return 0


if __name__ == "__main__":
    sys.exit(main())
