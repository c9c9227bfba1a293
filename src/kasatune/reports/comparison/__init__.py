"""Reports of a comparison in HTML, Markdown, CSV and LaTeX, from comparison.json alone."""
