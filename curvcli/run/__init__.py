"""What the command line and the Python interface share: inputs, plans, monitors, reports, files and state."""
