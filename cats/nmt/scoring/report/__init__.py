"""Reports: report.md of one run, and the HTML page of one or several runs."""
