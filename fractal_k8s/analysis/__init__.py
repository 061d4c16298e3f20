"""Grid -> numbers, one file per analysis. No analysis fills a hole or hides its coverage."""
