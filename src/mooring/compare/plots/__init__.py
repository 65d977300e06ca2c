"""The report's figures: each drawn once, saved as PNG and PDF, and set into the page as SVG in the page's colours."""
