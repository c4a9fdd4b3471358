"""What goes in and what comes out: pydantic models, and nothing that imports the engine."""
