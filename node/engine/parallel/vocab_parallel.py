"""A vocabulary cut into rows: each rank holds a part of the embedding, and of the head.

The embedding's rows of other ranks come as zeros, and an all-reduce adds them up: the same bits.
Each rank computes the logits of its own ids. Rank 0 gets from the others only what its samplers
need: the best id for greedy choice, the `top_k` best where the session says so, ties of the last
one included. Penalties and biases change any id's score, and log-probabilities or, without
`top_k`, a draw depend on the whole distribution: then, or if there are too many ties, all logits
are gathered.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import nn

from node.engine.parallel.tensor_parallel import Cut
from node.engine.stage_model import StageModel
from swarm.wire.sampling_params import Sampling

WHOLE = 0  # a session needs all logits
MOST_MERGED = 1024  # candidates of a rank; more are hardly less than all


class Vocabulary:
    """One rank's rows `[low, high)` of the vocabulary."""

    def __init__(self, bounds: tuple[int, ...], rank: int) -> None:
        self._bounds, self._rank = bounds, rank
        self._low, self._high = bounds[rank], bounds[rank + 1]
        self._least = min(high - low for low, high in pairwise(bounds))
        self._reduce: Callable[[torch.Tensor], torch.Tensor] | None = None

    @property
    def size(self) -> int:
        """Ids of all ranks together."""
        return self._bounds[-1]

    def cut(self, stage: StageModel) -> dict[str, Cut]:
        """Shorten the embedding and the head of a stage model on meta; returns what to read."""
        cuts: dict[str, Cut] = {}
        shortened: dict[int, nn.Parameter] = {}  # tied weights stay one parameter
        for name, module in _ends_of(stage):
            for own, parameter in list(module.named_parameters(recurse=False)):
                if id(parameter) not in shortened:
                    shape = (self._high - self._low, *parameter.shape[1:])
                    empty = torch.empty(shape, dtype=parameter.dtype, device="meta")
                    shortened[id(parameter)] = nn.Parameter(empty, requires_grad=False)
                module._parameters[own] = shortened[id(parameter)]
                cuts[f"{name}.{own}"] = Cut(0, self.size, 1, ((self._low, self._high),))
        return cuts

    def hook(self, stage: StageModel, reduce: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Look own ids up only, and add the rows of all ranks up."""
        self._reduce = reduce
        if stage.owned.start > 0:
            return
        embedding = stage.model.get_input_embeddings()
        absent: list[torch.Tensor] = []  # of the running step, [1, tokens, 1]

        def localise(module: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            ids = inputs[0] - self._low
            is_absent = (ids < 0) | (ids >= self._high - self._low)
            absent[:] = [is_absent.unsqueeze(-1)]
            return (ids.masked_fill(is_absent, 0),)

        def add_up(module: nn.Module, inputs: object, rows: torch.Tensor) -> torch.Tensor:
            return reduce(rows.masked_fill(absent[0], 0))

        embedding.register_forward_pre_hook(localise)
        embedding.register_forward_hook(add_up)

    def merge(self, logits: torch.Tensor, wanted: Sequence[int]) -> torch.Tensor:
        """Return [rows, vocab] from every rank's [rows, own ids]; not needed ids have -inf.

        `wanted` holds for each row how many candidates its sampler needs, as `candidates_of` says.
        All ranks return the same.
        """
        mine = logits.float()
        merged = mine.new_full((len(mine), self.size), float("-inf"))
        is_whole = torch.tensor([self._is_whole(count) for count in wanted], device=mine.device)
        some = [count for count in wanted if not self._is_whole(count)]
        if some:
            merged[~is_whole], tied = self._best(mine[~is_whole], max(some))
            is_whole = is_whole.masked_scatter(~is_whole, tied)
        if bool(is_whole.any()):
            merged[is_whole] = self._all(mine[is_whole])
        return merged

    def _is_whole(self, count: int) -> bool:
        return count == WHOLE or count > min(self._least, MOST_MERGED)

    def _best(self, mine: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows with the best `count` of every rank, and which rows have more ties than that."""
        values, ids = mine.max(-1, keepdim=True) if count == 1 else mine.topk(count)
        has_more = (mine >= values[:, -1:]).sum(-1) > count
        if count == 1:
            ids, has_more = mine.argmax(-1, keepdim=True), has_more & False  # the first id is best
        # values, ids and ties of every rank lie side by side: a sum of slots is a gather
        width = 2 * count + 1
        slots = mine.new_zeros((len(mine), (len(self._bounds) - 1) * width))
        here = slice(self._rank * width, (self._rank + 1) * width)
        slots[:, here] = torch.cat([values, (ids + self._low).float(), has_more[:, None]], -1)
        found = self._summed(slots).view(len(mine), -1, width)
        places = found[..., count:-1].flatten(1).nan_to_num().long()
        rows = mine.new_full((len(mine), self.size), float("-inf"))
        rows.scatter_(1, places, found[..., :count].flatten(1))
        return rows, (found[..., -1] > 0).any(-1)

    def _all(self, mine: torch.Tensor) -> torch.Tensor:
        rows = mine.new_zeros((len(mine), self.size))
        rows[:, self._low : self._high] = mine
        return self._summed(rows)

    def _summed(self, rows: torch.Tensor) -> torch.Tensor:
        assert self._reduce is not None
        return self._reduce(rows)


def candidates_of(sampling: Sampling) -> int:
    """How many of the best ids a session's sampler needs to draw exactly; WHOLE for all."""
    if sampling.needs_all_scores:
        return WHOLE
    return 1 if sampling.is_greedy else sampling.top_k


def _ends_of(stage: StageModel) -> list[tuple[str, nn.Module]]:
    """Embedding and head by name, as far as this stage has them."""
    names = {module: name for name, module in stage.model.named_modules()}
    model = stage.model
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    ends = (model.get_input_embeddings(), head)
    return [(names[each], each) for each in ends if isinstance(each, nn.Embedding | nn.Linear)]
