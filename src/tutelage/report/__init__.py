"""Report: one self-contained HTML page for a run. Reads numbers and traces, fetches nothing."""

from tutelage.report.curation import render_curation
from tutelage.report.page import render

__all__ = ["render", "render_curation"]
