"""Working through data: jobs, batches, plans, progress."""
