"""The live page: a captioner to try in the browser, and its API. Started by `caption --serve`, no stage."""
