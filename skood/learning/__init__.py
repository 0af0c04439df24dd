"""Learning from rows, as a fold over batches."""
