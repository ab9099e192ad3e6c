"""Datasets and students to the Hugging Face Hub, GCS and S3: compared by hash, sent once, never half there."""
