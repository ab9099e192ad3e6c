"""Completions in, training data out: schema, filters, ledger, dataset card, masks, batches."""
