"""Pictures for pages and cards, as SVG and HTML written by hand: nothing fetched, no scripts, light and dark."""

from coterie.pictures.heatmap import heatmap, histogram, legend, step_of
from coterie.pictures.line_chart import line_chart
from coterie.pictures.page import page
from coterie.pictures.style import STYLE

__all__ = ["STYLE", "heatmap", "histogram", "legend", "line_chart", "page", "step_of"]
