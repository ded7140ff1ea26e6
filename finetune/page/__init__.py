"""What the browser page and its HTTP endpoint are made of; `app.py` and `vallex app` start it.

The work is in modules without widgets, so that it can be tested without a browser; `tabs/` has the widgets.
"""
