"""Reading of curv.toml, and import of the code that it names."""
