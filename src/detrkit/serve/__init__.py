"""HTTP server: a live page and a JSON API."""
