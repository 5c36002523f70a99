"""Pictures and the page about a run: `report.write(workdir)` makes report.html."""

from mmjax.report.page import write

__all__ = ["write"]
