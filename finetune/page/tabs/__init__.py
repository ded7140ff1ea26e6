"""The tabs of the page: widgets and callbacks, a module each. The work is in the modules above."""
