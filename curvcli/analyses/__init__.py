"""One file a question: `run(problem, settings, monitor) -> Result`. No input or output here."""
