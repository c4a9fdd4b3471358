"""curv.toml, and the code that it names."""
