"""Services shared by the command line and the Python interface: inputs, plans, monitors, reports, files and state."""
