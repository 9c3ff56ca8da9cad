"""Benchmarks that are commands: python -m mad.bench NAME."""
