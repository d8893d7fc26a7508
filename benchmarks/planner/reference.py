"""Reference evaluator ("swarm-ref-1"): an oracle that says what a plan is worth on an instance of instances.json.

Written for clarity, not speed: the planner has a cost model of its own, and the two must agree (relative difference <= 1e-6) when it is run in
reference mode. Plain Python, no dependencies. Command line:

    python reference.py instances.json INSTANCE_ID plan.json        prints a JSON report; exit 1 and the reasons if the plan is not valid

A plan is {"pipelines": [{"stages": [{"start": 0, "end": 48, "shards": [{"device": "a6000-0/0", "kv": 2, "mlp": 56}, ...]}, ...]}, ...]}:
``start``/``end`` are layer numbers [start, end); ``device`` is "<machine id>/<index>"; ``kv`` counts KV heads and ``mlp`` blocks of 128 FFN columns
held by that shard. Over a stage, ``kv`` sums to the model's KV heads and ``mlp`` to ffn / 128 (rounded up). The first shard of a stage leads it: it holds
the embedding (first stage) or the LM head (last stage), 16-bit, and talks to the neighbouring stages' leaders or any member, whichever link is best.

Model of time (seconds; bytes; FLOP):
  decode, stage of l layers, b sequences of context c:
      max over shards  l * max(  (A*B + M*B + b*c*K) / (E_MEM * bandwidth),  b * 2 * (A + M) / (E_FLOP * flops)  )  +  2 * l * allreduce(b * H * 2)
      A, M = attention and MLP parameters of the shard, B = bytes per weight, K = KV bytes per token and layer of the shard
  prefill of s tokens: the same with b*c*K -> s*K, 2*b*(A+M) -> 2*s*(A+M) + 2*s*s*H*kv_share, and activations of s tokens in the all-reduce
  head: vocab * H * 2 bytes read once per step by the leader of the last stage (and 2 * b * vocab * H FLOP, whichever is slower)
  allreduce(x) over n shards, worst pair (alpha, beta):  min( 2(n-1)(alpha + x/(n*beta)),  alpha + (n-1)*x/beta )
  hop of x bytes between two stages: min over pairs of alpha + x/beta; the sampled token returns to the first stage (4 bytes)
"""

import json
import math
import sys
from dataclasses import dataclass

E_MEM, E_FLOP, USABLE = 0.8, 0.5, 0.92
COLUMNS = 128  # FFN columns per block


@dataclass(frozen=True)
class Device:
    id: str
    machine: dict
    flops: float  # FLOP/s, dense 16-bit
    bandwidth: float  # bytes/s
    memory: float  # usable bytes


def load(path, instance_id):
    """Return (model dict, instance dict, {device id: Device}) of one instance."""
    with open(path) as file:
        data = json.load(file)
    instance = next(i for i in data["instances"] if i["id"] == instance_id)
    devices = {}
    for m in instance["machines"]:
        for k in range(m["count"]):
            g = data["gpu_types"][m["gpu"]]
            memory = min(g["mem_GB"], m.get("ram_free_GB", math.inf)) * 1e9 * USABLE
            devices[f"{m['id']}/{k}"] = Device(
                f"{m['id']}/{k}", m, g["tflops_dense_16bit"] * 1e12, g["hbm_GBps"] * 1e9, memory
            )
    return data["models"][instance["model"]], instance, devices


def shape(instance):
    """(input tokens, output tokens) that stand for the instance's workload."""
    w = instance["workload"]
    if "mean_input" in w:
        return w["mean_input"], w["mean_output"]
    if "input_tokens" in w:
        return round(sum(w["input_tokens"]) / len(w["input_tokens"])), round(
            sum(w["output_tokens"]) / len(w["output_tokens"])
        )
    return 512, 128


def link(instance, a, b):
    """(one-way latency s, bandwidth bytes/s) from device a to device b."""
    ma, mb = a.machine, b.machine
    if ma["id"] == mb["id"]:
        return ma["intra"]["lat_us"] * 1e-6, ma["intra"]["bw_GBps"] * 1e9
    if ma.get("host") and ma.get("host") == mb.get("host"):
        return 10e-6, 16e9
    net = instance["network"]
    if ma["region"] == mb["region"]:
        entry = net["same_region"]
    else:
        pair = {ma["region"], mb["region"]}
        entry = next(
            (p for p in net["inter_region_pairs"] if {p["a"], p["b"]} == pair),
            net["inter_region_default"],
        )
    latency, bandwidth = entry["lat_ms"] * 1e-3, entry["bw_Gbps"] * 1e9 / 8
    if ma.get("nat") and mb.get("nat"):
        latency *= 2  # through a relay
    bandwidth = min(
        bandwidth, ma.get("up_Mbps", math.inf) * 1e6 / 8, mb.get("down_Mbps", math.inf) * 1e6 / 8
    )
    return latency, bandwidth


class Evaluator:
    def __init__(self, model, instance, devices):
        self.model, self.instance, self.devices = model, instance, devices
        h, self.layers, self.kv_heads = model["hidden"], model["layers"], model["kv_heads"]
        self.h, self.weight_bytes = h, model["bytes_per_weight"]
        self.blocks = math.ceil(model["ffn"] / COLUMNS)
        self.mlp_params = (3 if model["ffn_gated"] else 2) * h * model["ffn"]
        self.attn_params = model["params_per_layer"] - self.mlp_params
        self.kv_bytes = model["kv_bytes_per_token_per_layer"]
        self.head_bytes = model["vocab"] * h * 2

    # ---- validity -------------------------------------------------------------------------------------------------------------------------
    def problems(self, plan):
        """Every reason why the plan is not valid, as sentences; empty when it is."""
        out, used = [], set()
        for p, pipeline in enumerate(plan["pipelines"]):
            at = 0
            for stage in pipeline["stages"]:
                where = f"pipeline {p} stage [{stage['start']},{stage['end']})"
                if stage["start"] != at or stage["end"] <= stage["start"]:
                    out.append(f"{where}: expected to start at {at} and hold at least one layer")
                at = stage["end"]
                if (
                    sum(s["kv"] for s in stage["shards"]) != self.kv_heads
                    or sum(s["mlp"] for s in stage["shards"]) != self.blocks
                ):
                    out.append(
                        f"{where}: shards do not add up to {self.kv_heads} KV heads and {self.blocks} MLP blocks"
                    )
                for s in stage["shards"]:
                    if s["device"] not in self.devices:
                        out.append(f"{where}: no device {s['device']}")
                    elif s["device"] in used:
                        out.append(f"{where}: device {s['device']} is used twice")
                    if min(s["kv"], s["mlp"]) < 0 or s["kv"] + s["mlp"] == 0:
                        out.append(f"{where}: {s['device']} holds nothing or less")
                    used.add(s["device"])
            if at != self.layers:
                out.append(f"pipeline {p}: covers {at} of {self.layers} layers")
        if not out:
            s_in, s_out = shape(self.instance)
            for p, pipeline in enumerate(plan["pipelines"]):
                if self.max_sequences(pipeline, s_in + s_out) < 1:
                    out.append(
                        f"pipeline {p}: no room for the weights and the KV cache of one sequence of {s_in + s_out} tokens"
                    )
        return out

    # ---- parts ----------------------------------------------------------------------------------------------------------------------------
    def params(self, shard):
        return (
            self.attn_params * shard["kv"] / self.kv_heads
            + self.mlp_params * shard["mlp"] / self.blocks
        )

    def kv(self, shard):
        return self.kv_bytes * shard["kv"] / self.kv_heads

    def ends(self, stage, rank):
        return (
            (rank == 0) * self.head_bytes * ((stage["start"] == 0) + (stage["end"] == self.layers))
        )

    def max_sequences(self, pipeline, context):
        """Sequences of `context` tokens whose KV fits beside the weights on every shard."""
        room = math.inf
        for stage in pipeline["stages"]:
            n = stage["end"] - stage["start"]
            for rank, s in enumerate(stage["shards"]):
                free = (
                    self.devices[s["device"]].memory
                    - n * self.params(s) * self.weight_bytes
                    - self.ends(stage, rank)
                )
                if free < 0:
                    return 0
                if s["kv"]:
                    room = min(room, free / (n * self.kv(s) * context))
        return math.floor(room)

    def allreduce(self, stage, size):
        members = [self.devices[s["device"]] for s in stage["shards"]]
        n = len(members)
        if n == 1:
            return 0.0
        links = [link(self.instance, a, b) for a in members for b in members if a is not b]
        alpha, beta = max(x[0] for x in links), min(x[1] for x in links)
        return min(2 * (n - 1) * (alpha + size / (n * beta)), alpha + (n - 1) * size / beta)

    def stage_time(self, stage, tokens, kv_tokens, sampled, extra_flops=0.0):
        """Seconds of one pass of `tokens` new tokens that read `kv_tokens` cached ones (both summed over the batch); `sampled` rows reach the head."""
        n, slowest = stage["end"] - stage["start"], 0.0
        for rank, s in enumerate(stage["shards"]):
            d = self.devices[s["device"]]
            read = self.params(s) * self.weight_bytes + kv_tokens * self.kv(s)
            flop = 2 * tokens * self.params(s) + extra_flops * s["kv"] / self.kv_heads
            t = n * max(read / (E_MEM * d.bandwidth), flop / (E_FLOP * d.flops))
            if rank == 0 and stage["end"] == self.layers:
                t += max(
                    self.head_bytes / (E_MEM * d.bandwidth),
                    self.head_bytes * sampled / (E_FLOP * d.flops),
                )
            slowest = max(slowest, t)
        return slowest + 2 * n * self.allreduce(stage, tokens * self.h * 2)

    def hop(self, a, b, size):
        return (
            min(
                x[0] + size / x[1]
                for x in (
                    link(self.instance, self.devices[s["device"]], self.devices[t["device"]])
                    for s in a["shards"]
                    for t in b["shards"]
                )
            )
            if a is not b
            else 0.0
        )

    def hops(self, pipeline, tokens):
        stages = pipeline["stages"]
        return sum(
            self.hop(a, b, tokens * self.h * 2) for a, b in zip(stages, stages[1:])
        ) + self.hop(stages[-1], stages[0], 4)

    # ---- values ---------------------------------------------------------------------------------------------------------------------------
    def decode_step(self, pipeline, batch, context):
        """Seconds per token of one sequence alone in the pipeline with `batch` sequences per pass."""
        return sum(
            self.stage_time(s, batch, batch * context, batch) for s in pipeline["stages"]
        ) + self.hops(pipeline, batch)

    def prefill(self, pipeline, s_in):
        return sum(self.prefill_stage(s, s_in) for s in pipeline["stages"]) + self.hops(
            pipeline, s_in
        )

    def prefill_stage(self, stage, s_in):
        return self.stage_time(stage, s_in, s_in, 1, extra_flops=2.0 * s_in * s_in * self.h)

    def latency(self, pipeline, s_in, s_out):
        """Seconds of one request alone: prefill, then s_out - 1 decode steps at the mean context."""
        return self.prefill(pipeline, s_in) + (s_out - 1) * self.decode_step(
            pipeline, 1, s_in + s_out / 2
        )

    def throughput(self, pipeline, s_in, s_out):
        """Output tokens per second at saturation with continuous batching: n sequences fill the KV memory, split in g groups that chase each other."""
        n, best = self.max_sequences(pipeline, s_in + s_out), 0.0
        n = min(n, 4096)
        for g in range(1, min(n, 4 * len(pipeline["stages"])) + 1):
            b = n / g
            times = [
                self.stage_time(s, b, b * (s_in + s_out / 2), b)
                + b * self.prefill_stage(s, s_in) / s_out
                for s in pipeline["stages"]
            ]
            best = max(best, n / max(sum(times) + self.hops(pipeline, b), g * max(times)))
        return best

    def report(self, plan):
        s_in, s_out = shape(self.instance)
        rows = [
            {
                "latency_s": self.latency(p, s_in, s_out),
                "ms_per_token": 1e3 * self.decode_step(p, 1, s_in + s_out / 2),
                "tokens_per_s": self.throughput(p, s_in, s_out),
                "sequences": self.max_sequences(p, s_in + s_out),
            }
            for p in plan["pipelines"]
        ]
        return {
            "input_tokens": s_in,
            "output_tokens": s_out,
            "pipelines": rows,
            "best_latency_s": min(r["latency_s"] for r in rows),
            "tokens_per_s": sum(r["tokens_per_s"] for r in rows),
        }


if __name__ == "__main__":
    evaluator = Evaluator(*load(sys.argv[1], sys.argv[2]))
    with open(sys.argv[3]) as file:
        plan = json.load(file)
    found = evaluator.problems(plan)
    if found:
        sys.exit("\n".join(found))
    print(json.dumps(evaluator.report(plan), indent=1))
