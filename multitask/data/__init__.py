"""Files to rows: readers, checked rows with file and line, plain text corpora, synthetic data."""
