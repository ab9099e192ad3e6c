"""What a run would do, counted before it does it: no weights, no dataset, no network."""
