"""The report as one HTML page, and the page of a comparison."""

import logging

# matplotlib, which a module of this package imports, warns where it cannot write to the user's home.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
