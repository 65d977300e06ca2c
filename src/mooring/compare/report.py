"""temporary"""

from mooring.compare.results import Results

REPORT = "report.html"


def write_report(results: Results) -> None: ...
