"""One HTML page of a run, and the recorder of what its particles were on the way.

    from guidekit.report import Recorder, write

`write(folder)` makes OUT/report.html of an output directory of the command line; `write_result(result, folder)` makes
both of a result that you have. The page needs no network and no other file.
"""

from .page import write
from .recorder import Recorder
from .writing import write_result

__all__ = ["Recorder", "write", "write_result"]
