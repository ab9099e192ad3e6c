"""A model behind HTTP, and what asks it. The engine is in the server's process alone: clients import no jax."""
