"""Files become a problem: checkpoint, data, model and loss, each mismatch named."""
