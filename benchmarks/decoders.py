"""Problems of the zoo's decoder for `scale_on_paper.py`: with arrays, or as shapes alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from curvcli import zoo
from curvcli.losses import LOSSES
from curvcli.problem import Batch, Batches, Problem, Regulariser, Way

Array = Any


@dataclass(frozen=True)
class Decoder:
    """Sizes of `zoo.CharTransformer`."""

    width: int
    layers: int
    heads: int
    vocabulary: int = 256
    length: int = 128

    @property
    def module(self) -> zoo.CharTransformer:
        """The network."""
        return zoo.CharTransformer(self.vocabulary, self.length, self.width, self.layers, self.heads)

    @property
    def multiplied(self) -> int:
        """Entries of the kernels that every token is multiplied by: embeddings, biases and norms are not among them."""
        return 12 * self.width**2 * self.layers + self.width * self.vocabulary

    @property
    def forward_flops(self) -> int:
        """Of a token's matrix products: two for each entry of a kernel, and those of attention, masked ones too."""
        return 2 * self.multiplied + 4 * self.layers * self.length * self.width

    def parameters(self) -> dict[str, Any]:
        """Shapes of the parameters by path."""
        ids = jax.ShapeDtypeStruct((1, self.length), "int32")
        tree = jax.eval_shape(self.module.init, jax.random.key(0), ids)["params"]
        flat = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {"/".join(str(part.key) for part in path): leaf for path, leaf in flat}

    @property
    def dim(self) -> int:
        """D."""
        return sum(leaf.size for leaf in self.parameters().values())

    def predict(self, params: dict[str, Any], frozen: dict[str, Any], inputs: Array) -> Array:
        """Logits [b, T, V]."""
        tree: dict[str, Any] = {}
        for path, leaf in params.items():
            *parents, last = path.split("/")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = leaf
        return self.module.apply({"params": tree}, inputs)

    def batch(self, count: int) -> Batch:
        """Shapes of a batch of so many sequences."""
        ids, examples = jax.ShapeDtypeStruct((count, self.length), "int32"), (count,)
        return Batch(ids, ids, jax.ShapeDtypeStruct(examples, "float32"), jax.ShapeDtypeStruct(examples, "int32"))

    def problem(self, sequences: int, batch_size: int) -> Problem:
        """With random weights and tokens, float32; the normaliser is the number of tokens."""
        rng = np.random.default_rng(0)
        params = {
            name: jnp.asarray(
                1.0 + 0 * rng.normal(size=leaf.shape)
                if name.endswith("scale")
                else rng.normal(size=leaf.shape) / np.sqrt(leaf.shape[0] if leaf.ndim > 1 else 1e4),
                "float32",
            )
            for name, leaf in self.parameters().items()
        }
        ids = rng.integers(0, self.vocabulary, (sequences, self.length + 1)).astype(np.int32)
        batches = Batches(ids[:, :-1], ids[:, 1:], np.ones(sequences, "float32"), batch_size, np.dtype("float32"))
        return Problem(
            params, {"params": {}, "collections": {}}, self.predict, lambda flat: flat, LOSSES["softmax_cross_entropy"],
            batches, float(sequences * self.length), Regulariser(), sequences, Way("vmap", 0, 2),
        )  # fmt: skip
