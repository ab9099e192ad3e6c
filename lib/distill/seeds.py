"""Stages that are run with several seeds, written out as the stages that they stand for."""

from typing import Any


def with_seeds(stages: dict[str, Any]) -> dict[str, Any]:
    """Stages with `seeds` as one stage a seed, and those that build on them as often.

    a: seeds 0 1, b: init a → a-seed0, a-seed1, b-seed0 with init a-seed0, b-seed1 with init a-seed1
    """
    seeds: dict[str, tuple[Any, ...]] = {}

    def of(name: Any, above: tuple[Any, ...] = ()) -> tuple[Any, ...]:
        """The seeds of a stage, its own or those of the one that it builds on; a cycle is found elsewhere."""
        stage = stages.get(name)
        if not isinstance(stage, dict) or name in above:
            return ()
        if name not in seeds:
            own, inherited = stage.get("seeds"), of(stage.get("init"), (*above, name))
            if own and inherited:
                raise ValueError(
                    f"stages.{name}.seeds: {stage['init']} has seeds, and a stage for each: leave these out"
                )
            seeds[name] = tuple(own) if isinstance(own, (list, tuple)) else inherited
        return seeds[name]

    out: dict[str, Any] = {}
    for name, stage in stages.items():
        if not of(name):
            out[name] = stage
        for seed in of(name):
            init = f"{stage['init']}-seed{seed}" if of(stage.get("init")) else stage.get("init")
            plain = {key: value for key, value in stage.items() if key != "seeds"}
            out[f"{name}-seed{seed}"] = plain | {"init": init, "seed": seed}
    return out
