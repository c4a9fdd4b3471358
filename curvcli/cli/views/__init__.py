"""One view a report: `view(report, width, unicode)` gives the parts of one screen."""
