"""Numbers -> figures and the self-contained web page."""
