"""A run as one HTML page, and a recorder of clean estimates during the run.

    from guidekit.report import Recorder, write

`write(folder)` writes report.html into an output directory of the command line; `write_result(result, folder)` makes
both from a result in Python. The page needs no network access and no other file.
"""

from .page import write
from .recorder import Recorder
from .writing import write_result

__all__ = ["Recorder", "write", "write_result"]
