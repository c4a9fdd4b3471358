"""Loading of a problem from files: checkpoint, data, model and loss, with an error for each mismatch."""
