"""Pictures of reports.

The module of an analysis describes its picture by the values of `picture.py`. `paint.py` draws them with matplotlib,
and `page.py` writes them as a self-contained page.
"""
