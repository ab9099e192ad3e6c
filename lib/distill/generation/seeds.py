"""Where a sample's randomness comes from, known without JAX."""

import hashlib


def request_seed(seed: int, prompt_id: str) -> int:
    """64 bits that a prompt's samples draw from: a hash of the run's seed and the prompt's id."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{prompt_id}".encode()).digest()[:8], "big")
