"""Distil one Hugging Face checkpoint into a smaller one, as a graph of files.

Imports point one way: config, errors, files → parallel → models → checkpoints → generation;
text, data → training → evaluation. Nothing here knows Snakemake.
"""

SCHEMA_VERSION = 1
"""Version of every file format the library writes; a reader refuses another one."""
