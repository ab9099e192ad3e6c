"""The student's own completions as a batch (GKD, arXiv 2306.13649): sampled in the loop, by the engine that serves.

Which batches, and every sample in them, follow from the seed, the step and the weights before it. All of these a
checkpoint has, so that an interrupted run draws what one that was not has drawn.
"""

import jax
import numpy as np
from jax.sharding import Mesh

from distill.config.stages import Stage
from distill.data.loader import Loader, arrays
from distill.generation.engine import Engine
from distill.generation.requests import Request
from distill.generation.sampling import Draw
from distill.models import decoder, layouts
from distill.models.config import ModelConfig
from distill.parallel.mesh import replicated
from distill.training.adapters import merge
from distill.training.hidden_states import student_of
from distill.training.state import Frozen

OWN = 4  # the stream of random numbers that chooses batches and seeds samples


class Sampler:
    """Completes the prompts of the loader's batches. In each process on one device of its own, whole weights."""

    def __init__(
        self,
        config: ModelConfig,
        stage: Stage,
        loader: Loader,
        mesh: Mesh,
        frozen: Frozen | None,
        *,
        eos_ids: list[int],
        real_vocab: int,
    ):
        self.stage, self.loader, self.frozen = stage, loader, frozen
        self.draw, self.stop_ids = Draw.of(stage.on_policy.sampling), frozenset(eos_ids)
        self.longest = min(loader.length + 1, config.max_positions)
        self.engine: Engine | None = None
        self.how = {"slots": stage.on_policy.slots, "max_length": self.longest, "real_vocab": real_vocab}
        self.config = config

        def whole(params: decoder.Params, weights: decoder.Params) -> decoder.Params:
            if frozen is not None:
                params = merge(weights, params, frozen.scale)
            return layouts.unstack(config, params)

        self.whole = jax.jit(whole, out_shardings=replicated(mesh))

    def chosen(self, step: int) -> bool:
        """Whether the student completes the batch of a step itself."""
        return np.random.default_rng([self.stage.seed, OWN, step]).random() < self.stage.on_policy.share

    def batch(self, params: decoder.Params, step: int, part: slice) -> dict[str, np.ndarray]:
        """The batch that makes `step`, or a part of its rows: prompts of the data, answers of these params."""
        weights = self.whole(student_of(params), {} if self.frozen is None else self.frozen.weights)
        self._renew(jax.tree.map(lambda leaf: leaf.addressable_data(0), weights))
        rows = range((step - 1) * self.loader.batch_size, step * self.loader.batch_size)[part]
        prompts = [prompt_of(*self.loader.examples[int(self.loader.rows.row(row)[0])]) for row in rows]
        requests = [
            Request(tuple(prompt.tolist()), self._seed(row), 0, self.longest - len(prompt), self.draw, self.stop_ids)
            for row, prompt in zip(rows, prompts, strict=True)
        ]
        drawn = dict(self.engine.run(requests))
        answers = [np.asarray(drawn[i].tokens, np.int32) for i in range(len(requests))]
        examples = [
            (np.concatenate([prompt, answer]), np.arange(len(prompt) + len(answer)) >= len(prompt))
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        return arrays([[example] for example in examples], self.loader.length)

    def _renew(self, weights: decoder.Params) -> None:
        if self.engine is None:
            self.engine = Engine(self.config, weights, **self.how)
        else:
            self.engine.renew(weights)

    def _seed(self, row: int) -> int:
        """64 bits for a row of the endless series that the batches are cut from."""
        return int(np.random.SeedSequence([self.stage.seed, OWN, row]).generate_state(1, np.uint64)[0])


def prompt_of(ids: np.ndarray, learned: np.ndarray) -> np.ndarray:
    """What stands before the last answer: ids 5 6 7 2, mask 0 0 1 1 → 5 6; before the last turn where several are.

    The first token is never an answer.
    """
    before = np.flatnonzero(learned[: int(np.flatnonzero(learned)[-1])] == 0)
    return ids[: max(1, int(before[-1]) + 1 if len(before) else 1)]
