"""Reports as pictures.

An analysis's own file says what is to be seen, as values (`picture.py`); `paint.py` draws that with matplotlib, and
`page.py` makes of it a page that stands alone.
"""
