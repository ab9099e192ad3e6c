"""A training process that tells, as a line of JSON, what it did outside its steps: seconds, and seconds of CPU."""

import json
import shutil
import sys
import time
from importlib.metadata import version
from pathlib import Path

Mark = tuple[float, float]


def now() -> Mark:
    return time.perf_counter(), time.process_time()


def between(start: Mark, end: Mark) -> Mark:
    return end[0] - start[0], end[1] - start[1]


def main(folder: Path) -> None:
    start = now()
    import jax

    from distill.config.stages import Stage
    from distill.config.training import Part
    from distill.parallel.runtime import start as start_jax
    from distill.training import loop

    start_jax()
    imported, calls, judged = now(), [], []
    make, read = loop.make_step, loop.text_examples

    def told(*arguments):
        step = make(*arguments)

        def timed(*given):
            before = now()
            out = jax.block_until_ready(step(*given))
            calls.append((before, now()))
            return out

        return timed

    def examples(*arguments):
        found = read(*arguments)
        judged.append(now())
        return found

    loop.make_step, loop.text_examples = told, examples
    part = Part(source=str(folder / "rows.jsonl"), prompt="prompt", completion="completion")
    stage = Stage(init="-", data=(part,), steps=4, batch_size=1, remat="dots", log_every=1)
    shutil.rmtree(folder / "sft", ignore_errors=True)
    loop.train(folder / "params", [], folder / "sft", stage, "sft", template="none", max_length=257)
    first, second = calls[0], between(*calls[1])
    compiling = tuple(max(0.0, a - b) for a, b in zip(between(*first), second, strict=True))
    parts = {
        "imports": between(start, imported),
        "reading and tokenizing": between(imported, judged[0]),
        "weights and optimiser": between(judged[0], first[0]),
        "compiling, from the cache": compiling,
        "the student's params": between(calls[-1][1], now()),
    }
    print(json.dumps({"parts": parts, "versions": {name: version(name) for name in ("jax", "orbax-checkpoint")}}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
