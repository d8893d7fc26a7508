"""ModelSpec: what planning and routing need to know of a model, in numbers; no torch."""

from dataclasses import asdict, dataclass
from typing import Any

from swarm.plan import COLUMNS_PER_BLOCK

BUILT_IN = "swarm-tiny"
BYTES_PER_VALUE = 4  # of a weight or KV value at run time: f32
PLANNED_TOKENS = 512  # of one session: every pipeline has KV room for at least that


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Dimensions of a decoder-only transformer; parameters are counts, not bytes."""

    name: str  # what the host named: the built-in model, a folder or a hub id
    digest: str  # SHA-256 over config and tensor headers: peers with unlike digests never mix
    architecture: str  # the config's model_type
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    context: int  # most tokens in one session
    attention_parameters: int  # of one layer (the largest)
    mlp_parameters: int  # of one layer (the largest), experts and router included
    tied: bool = False  # the head shares the embedding's weight
    experts: int = 0

    def __post_init__(self) -> None:
        counts = (self.layers, self.hidden, self.heads, self.kv_heads, self.head_dim, self.ffn)
        if min(*counts, self.vocab, self.context) < 1:
            raise ValueError(f"{self.name}: every dimension of a model is at least 1")

    @property
    def mlp_blocks(self) -> int:
        """Units of `mlp` in a whole layer: blocks of 128 FFN columns, the last one maybe short."""
        return -(-self.ffn // COLUMNS_PER_BLOCK)

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer."""
        return self.attention_parameters + self.mlp_parameters

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the embedding, and of the head: vocab x hidden each."""
        return self.vocab * self.hidden

    def kv_bytes(self, kv_heads: int, bytes_per_value: int) -> int:
        """KV cache bytes of one token in one layer for a shard of `kv_heads` heads."""
        return 2 * kv_heads * self.head_dim * bytes_per_value

    def to_json(self) -> dict[str, Any]:
        """Every field by name."""
        return asdict(self)
