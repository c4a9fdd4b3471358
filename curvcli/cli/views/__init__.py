"""Views of reports: `view(report, width, unicode)` returns the parts of one screen."""
